"""The bundle: a directory that holds one exported model, described and checked by its manifest.

    manifest.json   format version, ModelConfig, inputs and outputs, provenance, sha256 and size of every file
    model.onnx      the graph; its weights in model.onnx.data
    rollback.onnx   draft.onnx: the graphs for speculative decoding, where they were exported; weights as above
    embed.onnx      vision.onnx: of a model that sees; weights as above
    tokenizer.json  chat_template.jinja; of a policy the former, and only where it reads instructions
    policy.json     of a policy: what it sees and does
    engines/        what a device made for itself from these files; not listed in the manifest, never copied

A bundle is read without pickle and without running anything from it (docs/decisions/0003).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import NoReturn

import msgspec

from edge_sdk.control.policy import POLICY_FILE, PolicyConfig
from edge_sdk.errors import BundleError, ConfigError, explain
from edge_sdk.files import new_directory, sha256
from edge_sdk.hashed_files import HashedFiles
from edge_sdk.model import ModelConfig
from edge_sdk.speculation import GraphSpec, extra_graphs
from edge_sdk.tensor_spec import TensorSpec
from edge_sdk.text import TEMPLATE_FILE, TOKENIZER_FILE

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"
ENGINES = "engines"
HASHED = "hashed"
"""In that folder: which files were hashed (:mod:`edge_sdk.hashed_files`)."""
REQUIRED_FILES = (GRAPH, WEIGHTS, TOKENIZER_FILE, TEMPLATE_FILE)
"""Of a language model."""
REEXPORT = "Copy the bundle again or export it again with `edge-export bundle`."


class FileEntry(msgspec.Struct, frozen=True):
    """What a file of the bundle must be."""

    sha256: str
    bytes: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The content of manifest.json."""

    format_version: int
    model: ModelConfig
    weights: str
    """How the weights are stored, e.g. ``float32`` or ``int4-block32``."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    provenance: dict[str, str]
    files: dict[str, FileEntry]
    graphs: dict[str, GraphSpec] = {}
    """The graphs besides model.onnx, by file name."""


def required_files(model: ModelConfig) -> tuple[str, ...]:
    """What a model's bundle must hold."""
    if model.policy is None:
        return (*REQUIRED_FILES, *extra_graphs(model))
    return (GRAPH, WEIGHTS, POLICY_FILE, *([TOKENIZER_FILE] if model.policy.instruction else []))


class _Version(msgspec.Struct):
    format_version: int


def _refuse(what: str, *, expected: object, found: object, todo: str = REEXPORT) -> NoReturn:
    raise BundleError(explain(what, expected=expected, found=found, todo=todo))


class Bundle:
    """An opened bundle: its manifest, and the paths of its verified files."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def open(cls, path: str | Path, *, verify_hashes: bool = True, remember: bool = False) -> Bundle:
        """Opens and checks a bundle; without ``verify_hashes`` only names and sizes are compared.

        ``remember``: reads no file again that was hashed before and, as its times and inode say, not written since.

        Raises BundleError when anything is missing, altered, truncated, outside the folder or unknown.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        hashed = HashedFiles(folder / ENGINES / HASHED) if remember else None
        for name, entry in manifest.files.items():
            file = _check_file(folder, name, entry)
            if verify_hashes:
                _check_hash(file, entry, hashed.sha256(name, file) if hashed else sha256(file))
        if hashed is not None:
            hashed.save()
        graphs = extra_graphs(manifest.model)
        for name in required_files(manifest.model):
            if name not in manifest.files:
                _refuse(str(folder / MANIFEST), expected=f"an entry for {name}", found="none")
        _check_schema(folder, manifest.model)
        described = (manifest.model.inputs(), manifest.model.outputs(), graphs)
        if (manifest.inputs, manifest.outputs, manifest.graphs) != described:
            _refuse(str(folder / MANIFEST), expected="inputs and outputs that follow from the model", found="others")
        return cls(folder, manifest)

    def check_still_there(self) -> None:
        """Whether the folder holds this bundle still, once all its files are read. Raises BundleError.

        Another one may have taken its place, as a whole, between two files.
        """
        if read_manifest(self.path) != self.manifest:
            _refuse(
                str(self.path), expected="the same bundle until it is loaded", found="another", todo="Load it again."
            )

    @property
    def model_id(self) -> str:
        """Names what computes: two bundles share it if their graphs and weights are the same."""
        parts = (self.manifest.files[name].sha256 for name in (GRAPH, WEIGHTS))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files."""
        return self.path / name

    def total_bytes(self) -> int:
        """Size of all files that the manifest lists."""
        return sum(entry.bytes for entry in self.manifest.files.values())


def read_manifest(folder: Path) -> Manifest:
    """A bundle's manifest; its files are not looked at. Raises BundleError."""
    path = folder / MANIFEST
    try:
        text = path.read_bytes()
    except OSError as error:
        _refuse(str(folder), expected=f"a bundle with a {MANIFEST}", found=error.strerror, todo="Check the path.")
    try:
        version = msgspec.json.decode(text, type=_Version).format_version
        if version != FORMAT_VERSION:
            _refuse(
                f"{path}'s format_version",
                expected=FORMAT_VERSION,
                found=version,
                todo="Use the Edge SDK version that wrote it, or export it again.",
            )
        return msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, ConfigError) as error:  # ValidationError is a DecodeError
        _refuse(str(path), expected="a valid manifest", found=error)


def _check_schema(folder: Path, model: ModelConfig) -> None:
    """Refuses a policy.json that is not the model's."""
    if model.policy is None:
        return
    path = folder / POLICY_FILE
    try:
        schema = PolicyConfig.read(path)
    except ConfigError as error:
        _refuse(str(path), expected="a policy's schema", found=error)
    if schema != model.policy.schema:
        _refuse(str(path), expected=f"the schema that {MANIFEST} has", found="another")


def check_inside(folder: Path, name: str) -> Path:
    """The path of a file that a manifest names, which need not be there. Raises BundleError outside the folder."""
    pure = PurePosixPath(name)
    inside = not pure.is_absolute() and ".." not in pure.parts and "\\" not in name
    path = folder / name
    if not inside or not path.resolve().is_relative_to(folder.resolve()):
        _refuse(f"The path {name!r} in {MANIFEST}", expected="a path inside the bundle", found="one that leaves it")
    return path


def _check_file(folder: Path, name: str, entry: FileEntry) -> Path:
    path = check_inside(folder, name)
    if not path.is_file():
        _refuse(str(path), expected="a file", found="none")
    size = path.stat().st_size
    if size != entry.bytes:
        _refuse(str(path), expected=f"{entry.bytes} bytes", found=f"{size}")
    return path


def _check_hash(path: Path, entry: FileEntry, digest: str) -> None:
    if digest != entry.sha256:
        _refuse(str(path), expected=f"sha256 {entry.sha256}", found=digest)


def write_bundle(
    target: Path, sources: Mapping[str, Path], *, model: ModelConfig, weights: str, provenance: Mapping[str, str]
) -> Bundle:
    """Copies ``sources`` (name in the bundle -> file) and writes the manifest; the bundle appears whole or not.

    An existing bundle at ``target`` is replaced; any other existing folder is refused.
    """
    if target.exists() and not (target / MANIFEST).exists():
        _refuse(
            str(target), expected="no folder or a bundle to replace", found="something else", todo="Choose another."
        )
    with new_directory(target) as new:
        entries = {}
        for name, source in sources.items():
            shutil.copyfile(source, new / name)
            entries[name] = FileEntry(sha256(new / name), (new / name).stat().st_size)
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            model=model,
            weights=weights,
            inputs=model.inputs(),
            outputs=model.outputs(),
            graphs=extra_graphs(model),
            provenance=dict(provenance),
            files=entries,
        )
        (new / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        Bundle.open(new)
    return Bundle.open(target, verify_hashes=False)
