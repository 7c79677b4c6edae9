"""A page of the images of a run: served while they arrive, or written as one HTML file. Commands change the run.

server           the page on this machine, updated by server-sent events
shown_run        the run that the page shows: jobs, ratings, planned jobs
report           the page as one file, with thumbnails and charts
rendering        the page from its template, and jobs as the page reads them
thumbnails       small images, made in threads
thumbnail_files  where they are kept in the run directory
thumbnail_maker  a child process that makes them during a run
new_jobs         new jobs from images of the run: other parameters, other seeds
page_commands    the commands that the page starts: retry, run, export
charts           the run's charts, as SVG
contact_sheet    small images side by side in one JPEG
page/            template, style sheet and scripts; the page loads nothing from other hosts
"""
