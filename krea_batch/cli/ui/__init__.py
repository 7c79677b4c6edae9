"""The output of the command line.

job_check        the check of job files before a run
run_session      a run of the command line, from its first job to its summary
run_gateway      opens the gateway of a run that is not in progress
embedded_simulator  the simulator of `--simulate`
progress         the live display
run_status       the numbers of the display, and how it shows them
status_readers   read these numbers from the engine or a ledger
summary          the summary at the end of a run
check_progress   the progress of a check
prompt_syntax_notices  notices about prompts with the syntax of other tools
forecast_output  a forecast in words
bench_runner     a benchmark, from its question to its table
comparison_view  a comparison with scripts, to its table and plot
bench_status     the display of both, and Ctrl-C
diagnostics      the checks of `krea-batch doctor`
formatting       numbers, durations and sizes in words
error_messages   errors with options instead of parameters
optional_deps    errors that name the extra to install
explanations     what `krea-batch explain` prints, and which errors it explains
"""
