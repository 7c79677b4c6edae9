"""Read job files: check every row, then yield the jobs in the order of their rows.

job_files      JobFiles: check all files, then iterate over their jobs
check          checks every row before anything is charged
inputs         opens files, directories and standard input, and finds their format
folder_texts   which files of a directory are read, and whether a file is one prompt or many
options        how files are read: format, columns, template, sweep, prompt syntax
fixed_values   values that apply to every row
selection      the first jobs, or a sample of them
parser         makes the jobs of a row: one, or as many as its sweep has
sweep          combinations of field values
template       prompts made from columns
prompt_recognition  recognises prompts for other tools, and rows that are probably no prompts
prompt_syntax  reads the arguments and the emphasis of A1111 and Midjourney in prompts
dynamic_prompts  expands {a|b} and __name__
dedupe         counts jobs whose request repeats an earlier one, or drops them
duplicates_file  the jobs that were dropped, as a file of the run directory
duplicate_ids  finds ids that are used twice, with bounded memory
hash_buckets   hashes of a million rows in bounded memory
reference_paths  reads local reference images, relative to their job file
moved_rows     ids of rows that have moved since an earlier run
checkpoint     how far the files were read, so that a resumed run skips the rest
json_errors    explains invalid JSON
field_errors   explains invalid fields
key_paths      finds values in nested objects: params.seed
data_sets      finds the files of datasets
own_files      reads results and exports of krea-batch as jobs
values         converts values to the types of the fields
formats        one module per format

Files are read twice: once to check every row, once to run. Memory does not grow with the number of rows, except for
JSON documents.
"""

from krea_batch.sources.check import CheckResult
from krea_batch.sources.job_files import JobFiles
from krea_batch.sources.options import InputOptions

__all__ = ["CheckResult", "InputOptions", "JobFiles"]
