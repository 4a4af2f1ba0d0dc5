"""The bundle (the folder that is deployed), its manifest and its digests.

A bundle contains ``bundle.json`` (the manifest, :class:`Manifest`), ``backbone.onnx``, one ``<stage>.onnx`` per stage,
``selftest.npz``, ``MODEL_CARD.md`` and, optionally, ``engines/``. The manifest lists every other file with its size and
SHA-256. The SHA-256 of the manifest therefore identifies the whole bundle (``bundle_sha256`` in results).
"""

from __future__ import annotations

from hagmil.bundle.backbone_card import BackboneCard, open_backbone
from hagmil.bundle.engine_entry import (
    Capability,
    EngineEntry,
    EnginePrecision,
    FlavourName,
    HardwareCompatibility,
    Profile,
    ShapeRange,
)
from hagmil.bundle.entries import (
    BACKBONE_CARD_NAME,
    BACKBONE_ONNX_NAME,
    LARGEST_JSON_BYTES,
    MANIFEST_NAME,
    RESEARCH_USE_ONLY,
    SELFTEST_NAME,
    Digest,
    FileEntry,
    Precision,
    StageName,
    Temperature,
)
from hagmil.bundle.folder import (
    Bundle,
    check_bundle,
    check_file,
    check_graph_references,
    file_entries,
    file_states,
    new_folder,
    open_bundle,
    write_manifest,
)
from hagmil.bundle.listed_files import file_problems
from hagmil.bundle.manifest import (
    Backbone,
    Hierarchy,
    Manifest,
    Provenance,
    Stage,
    manifest_schema,
)
from hagmil.bundle.quantization import Quantization, Throughput
from hagmil.bundle.tested import TOP_ROWS, Certainty, Tested, TestedKeep, TestedSize

__all__ = [
    "BACKBONE_CARD_NAME",
    "BACKBONE_ONNX_NAME",
    "LARGEST_JSON_BYTES",
    "MANIFEST_NAME",
    "RESEARCH_USE_ONLY",
    "SELFTEST_NAME",
    "TOP_ROWS",
    "Backbone",
    "BackboneCard",
    "Bundle",
    "Capability",
    "Certainty",
    "Digest",
    "EngineEntry",
    "EnginePrecision",
    "FileEntry",
    "FlavourName",
    "HardwareCompatibility",
    "Hierarchy",
    "Manifest",
    "Precision",
    "Profile",
    "Provenance",
    "Quantization",
    "ShapeRange",
    "Stage",
    "StageName",
    "Temperature",
    "Tested",
    "TestedKeep",
    "TestedSize",
    "Throughput",
    "check_bundle",
    "check_file",
    "check_graph_references",
    "file_entries",
    "file_problems",
    "file_states",
    "manifest_schema",
    "new_folder",
    "open_backbone",
    "open_bundle",
    "write_manifest",
]
