"""A run's pictures come in; the folders and files that other tools load go out.

    ledger ─ gallery (which pictures, what is known of each) ─► imagefolder | parquet | webdataset | csv | zip

embed     what is known of a picture, put into its PNG, and read from there
check     every picture held against the ledger

Newcomers: a run is only read. What is written appears under its name when it is whole, and not before.
"""

from krea_batch.maintenance.export.run_images import Gallery, Picture
from krea_batch.maintenance.export.writers import FORMATS, export

__all__ = ["FORMATS", "Gallery", "Picture", "export"]
