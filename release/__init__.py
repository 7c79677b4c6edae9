"""What makes and checks a release. It is no part of the package.

build_hook      adds the manual pages and completion scripts to a wheel
licences        checks the licences of the dependencies
shell_files     the manual pages and completion scripts, from the commands
version         checks the version and the changelog
"""
