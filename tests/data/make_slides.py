"""Write the small slides of tests/data/slides that are not real scans.

    pip install pydicom==3.0.2
    python -m tests.data.make_slides

- boxes.tiff: a tiled pyramid with deflate and libtiff's default resolution of 72 dots per inch, which is no spacing.
- boxes_0.dcm, boxes_1.dcm: one DICOM series with a pyramid of two levels, one file per level.
- unreadable.svs: an Aperio file whose only tile is not a JPEG stream.
- unopenable.tiff: a TIFF with a compression scheme that no reader knows.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyvips
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage

from tests.runtime.slide_files import APERIO_TEXT, JPEG, RAW, TiffPage, write_tiff

FOLDER = Path(__file__).with_name("slides")
_TILE_PX = 64
_UID_ROOT = "1.2.826.0.1.3680043.8.498.20261128"


def boxes(width: int, height: int) -> NDArray[np.uint8]:
    """Coloured rectangles on white, uint8 (height, width, 3)."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    for index, colour in enumerate(((200, 60, 120), (90, 60, 160), (230, 150, 180))):
        top, left = (index + 1) * height // 6, index * width // 4
        pixels[top : top + height // 3, left : left + width // 3] = colour
    return pixels


def write_boxes_tiff(path: Path) -> None:
    """A pyramid of four levels whose resolution tag is 72 dots per inch."""
    per_mm = 72 / 25.4
    pyvips.Image.new_from_array(boxes(300, 250)).copy(interpretation="srgb").tiffsave(
        str(path),
        tile=True,
        tile_width=_TILE_PX,
        tile_height=_TILE_PX,
        pyramid=True,
        compression="deflate",
        xres=per_mm,
        yres=per_mm,
    )


def write_dicom_level(path: Path, pixels: NDArray[np.uint8], spacing_um: float, instance: int) -> None:
    """One level of a DICOM whole-slide image: RGB JPEG frames, TILED_FULL."""
    height, width = pixels.shape[:2]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
    meta.MediaStorageSOPInstanceUID = f"{_UID_ROOT}.3.{instance}"
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = f"{_UID_ROOT}.1", f"{_UID_ROOT}.2"
    data.FrameOfReferenceUID, data.DimensionOrganizationUID = f"{_UID_ROOT}.4", f"{_UID_ROOT}.5"
    data.Modality, data.InstanceNumber = "SM", instance + 1
    data.PatientName = data.PatientID = data.StudyDate = data.StudyTime = data.StudyID = data.AccessionNumber = ""
    data.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "NONE" if instance == 0 else "RESAMPLED"]
    data.SamplesPerPixel, data.PlanarConfiguration, data.PhotometricInterpretation = 3, 0, "RGB"
    data.Rows = data.Columns = _TILE_PX
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width, height
    data.TotalPixelMatrixFocalPlanes, data.NumberOfOpticalPaths = 1, 1
    data.DimensionOrganizationType = "TILED_FULL"
    data.ImagedVolumeWidth, data.ImagedVolumeHeight = width * spacing_um / 1000, height * spacing_um / 1000
    data.VolumetricProperties, data.SpecimenLabelInImage, data.BurnedInAnnotation = "VOLUME", "NO", "NO"
    data.LossyImageCompression = "01"
    measures, shared, optics = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [spacing_um / 1000, spacing_um / 1000], 0
    shared.PixelMeasuresSequence = [measures]
    optics.OpticalPathIdentifier, optics.ObjectiveLensPower = "0", 20
    data.SharedFunctionalGroupsSequence, data.OpticalPathSequence = [shared], [optics]
    frames = []
    for top in range(0, height, _TILE_PX):
        for left in range(0, width, _TILE_PX):
            tile = np.full((_TILE_PX, _TILE_PX, 3), 255, np.uint8)
            part = pixels[top : top + _TILE_PX, left : left + _TILE_PX]
            tile[: part.shape[0], : part.shape[1]] = part
            frame = io.BytesIO()
            Image.fromarray(tile).save(frame, "JPEG", quality=90, keep_rgb=True)
            frames.append(frame.getvalue())
    data.NumberOfFrames = len(frames)
    data.PixelData = encapsulate(frames)
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    data.save_as(path, enforce_file_format=True)


def write_damaged(folder: Path) -> None:
    """The two files that cannot be read."""
    page = TiffPage(boxes(16, 16), _TILE_PX, JPEG, description=f"{APERIO_TEXT}|AppMag = 20|MPP = 0.499")
    whole = bytearray(write_tiff(folder / "unreadable.svs", [page]).read_bytes())
    start = whole.index(b"\xff\xd8")
    end = whole.index(b"\xff\xd9", start) + 2
    whole[start:end] = b"\0" * (end - start)
    (folder / "unreadable.svs").write_bytes(whole)
    page = TiffPage(boxes(16, 16), 16, RAW)
    whole = bytearray(write_tiff(folder / "unopenable.tiff", [page]).read_bytes())
    tag = whole.index(b"\x03\x01\x03\x00\x01\x00\x00\x00\x01\x00")  # compression, SHORT, 1 value: 1
    whole[tag + 8 : tag + 10] = (52_479).to_bytes(2, "little")
    (folder / "unopenable.tiff").write_bytes(whole)


def main() -> None:
    """Write all files into the folder of test slides."""
    write_boxes_tiff(FOLDER / "boxes.tiff")
    write_dicom_level(FOLDER / "boxes_0.dcm", boxes(150, 100), 0.5, 0)
    write_dicom_level(FOLDER / "boxes_1.dcm", boxes(75, 50), 1.0, 1)
    write_damaged(FOLDER)


if __name__ == "__main__":
    main()
