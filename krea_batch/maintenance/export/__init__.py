"""Write the images of a run in the formats of other tools.

run_images    reads the images of a run with their requests
writers       imagefolder, parquet, webdataset, csv, zip
recognition   tells exports of krea-batch from other files
image_paths   gives the images of an export their paths
png_metadata  writes a job's prompt and parameters into its PNG, and reads them

A run is only read. Output gets its final name once it is complete.
"""

from krea_batch.maintenance.export.run_images import ExportedImage, RunImages
from krea_batch.maintenance.export.writers import WRITERS, export

__all__ = ["WRITERS", "ExportedImage", "RunImages", "export"]
