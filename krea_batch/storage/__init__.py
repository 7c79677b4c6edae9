"""Bytes on disk and in object stores.

run_dir           the run directory: its files, its lock
process_lock      locks that show that a run has ended, even if its process was killed
operating_system  what differs between operating systems
directory_lock    locks on directories
atomic            replace a file atomically
os_errors         what to do about an error of the operating system
outputs           guards the files and directories that commands write at a user's paths
async_io          asyncio helpers for file work
clocks            monotonic clocks of an event loop
png               validates PNG data while it streams
image_types       the types of images, and the check of an image as it streams
image_file        a partial download: .part file, fsync, rename
local_writer      stores images in the run directory, several per fsync
sink_writer       verifies images and hands them to a sink
results_file      results.jsonl
ratings           star ratings of the images
results_rows      reads results.jsonl, and marks how far it was read
notebook_display  what a notebook shows for an outcome
spill             request_ids that the ledger could not take
sinks             folders and object stores
reference_files   reads local reference images, and names their contents
reference_store   uploads reference images to an object store, and signs their URLs
"""
