"""Files that appear complete or not at all, temporary files that no run leaves behind, and digests."""

from hagmil._files.atomic import atomic_path, write_bytes, write_text
from hagmil._files.folders import sibling_folder, temporary_folder
from hagmil._files.output import OutputFolder, is_disk_full, reporting_output_errors
from hagmil._files.reading import read_limited, sha256_of
from hagmil._files.temporary import remove_own_temporaries

__all__ = [
    "OutputFolder",
    "atomic_path",
    "is_disk_full",
    "read_limited",
    "remove_own_temporaries",
    "reporting_output_errors",
    "sha256_of",
    "sibling_folder",
    "temporary_folder",
    "write_bytes",
    "write_text",
]
