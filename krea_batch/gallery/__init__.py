"""A page of the images of a run: served while they arrive, or written as one HTML file. It only reads the run.

server           the page on this machine, updated by server-sent events
report           the page as one file, with thumbnails and charts
rendering        the page from its template, and jobs as the page reads them
thumbnails       small images, made in threads
thumbnail_files  where they are kept in the run directory
thumbnail_maker  a child process that makes them during a run
charts           the run's charts, as SVG
contact_sheet    small images side by side in one JPEG
page/            template, style sheet and scripts; the page loads nothing from other hosts
"""
