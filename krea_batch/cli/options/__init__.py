"""Options that several commands share.

run_options      the settings of a run, derived from the table in `krea_batch.settings`
run_settings     the settings and the API key of a run, from the options
input_options    how job files are read
selection_options  which jobs are taken, values for all of them, and hints for options of other tools
logging_options  logs and metrics
headings         the headings of these options in the help
job_id_file      a file of job ids
"""
