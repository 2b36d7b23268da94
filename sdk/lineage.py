"""Where a bundle comes from: its base weights, its data, and the bundles that it continues, back to the first.

The manifest says it of the bundle itself and names its parents by digest. What the parents were stands in
`mlbom.cdx.json`, as nested ancestors, so that a release can be accounted for when its parents are long gone, and
in the parents, where they are at hand. A paper that contradicts the manifest is refused: the manifest is what
devices were given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec

from sdk.bundle import MANIFEST_NAME, MAX_MANIFEST_BYTES, Bundle, Manifest, decode_manifest
from sdk.damaged import DAMAGED
from sdk.errors import BadFormat, BundleError

MLBOM_NAME: Final = "mlbom.cdx.json"
MAX_MLBOM_BYTES: Final = 4 * 1024**2
"""Two kilobytes an ancestor: two thousand of them."""
MAX_GENERATIONS: Final = 64
"""Further back a paper names no ancestors; those of the oldest it names lead on."""
PREFIX: Final = "headway:"
"""Of the names of our properties in CycloneDX."""

FINETUNED: Final = "finetuned_for_int8."
"""Begins the names of properties on fine-tuning for int8, which no manifest has; the profile follows."""

_AGAIN: Final = "Export the bundle again."


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """Base weights: where they come from, digest (None where they were drawn at random), licence as stated."""

    source: str
    sha256: str | None
    licence: str


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle of a lineage.

    Attributes:
        name: What people call it.
        bundle_sha256: Digest of its manifest, which covers every file.
        created_utc, backbone, strategy, data_sha256, images: As its manifest says.
        weights: What it was made from.
        finetuned: How forms were fine-tuned for int8, by what they are made for, as its papers say.
        parents: Bundles that it continues: classes of the same name have their ids.
        missing: Digests of parents of which nothing more is known here.
    """

    name: str
    bundle_sha256: str
    created_utc: str
    backbone: str
    strategy: str
    weights: Weights
    data_sha256: str
    images: int
    finetuned: dict[str, str] = {}
    parents: list[Link] = []
    missing: list[str] = []


def lineage(bundle: Bundle, search: Iterable[Path] = ()) -> Link:
    """Return where a bundle comes from.

    Args:
        bundle: The bundle.
        search: Folders in which to look for parents that its papers do not tell of: bundles, or folders of them.

    Raises:
        BadFormat: its papers are damaged, or contradict its manifest.
    """
    paper = _paper_of(bundle)
    told = {link.bundle_sha256: link for link in _ancestors_in(paper)}
    here: dict[str, Path] = {}
    if any(parent not in told for parent in bundle.manifest.parents):
        here = {digest: path for folder in search for digest, path in _bundles_in(folder)}
    found = _link(bundle.manifest, bundle.digest(), told, here, MAX_GENERATIONS)
    return found if paper is None else msgspec.structs.replace(found, finetuned=_finetuned(_values(paper)))


def _link(
    manifest: Manifest, digest: str, told: Mapping[str, Link], here: Mapping[str, Path], generations: int
) -> Link:
    parents, missing = [], []
    for parent in manifest.parents:
        found = told.get(parent)
        if found is None and parent in here and generations > 1:
            opened = Bundle.open(here[parent])
            paper = _paper_of(opened)
            further = {link.bundle_sha256: link for link in _ancestors_in(paper)}
            found = _link(opened.manifest, parent, further, here, generations - 1)
            if paper is not None:
                found = msgspec.structs.replace(found, finetuned=_finetuned(_values(paper)))
        if found is None:
            missing.append(parent)
        else:
            parents.append(found)
    return msgspec.structs.replace(own_link(manifest, digest), parents=parents, missing=missing)


def own_link(manifest: Manifest, digest: str) -> Link:
    """Return what a manifest says of its own bundle, without parents."""
    made = manifest.lineage
    return Link(
        name=manifest.name,
        bundle_sha256=digest,
        created_utc=made.created_utc,
        backbone=made.backbone,
        strategy=made.strategy,
        weights=Weights(source=made.weights_source, sha256=made.weights_sha256, licence=made.weights_licence),
        data_sha256=made.data_sha256,
        images=made.images,
    )


def properties_of(link: Link) -> dict[str, str]:
    """Return a link as CycloneDX properties, without its name and parents. `link_of` reads them."""
    return {
        "bundle_sha256": link.bundle_sha256,
        "created_utc": link.created_utc,
        "backbone": link.backbone,
        "strategy": link.strategy,
        "weights_source": link.weights.source,
        "weights_sha256": link.weights.sha256 or "none",
        "weights_licence": link.weights.licence,
        "data_sha256": link.data_sha256,
        "images": str(link.images),
        "missing_parents": " ".join(link.missing),
        **{FINETUNED + profile: how for profile, how in link.finetuned.items()},
    }


def _bundles_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield digest and path of the bundles that a folder is or holds. What is none is passed over."""
    try:
        paths = [folder, *sorted(folder.iterdir())]
    except OSError:
        return
    for path in paths:
        file = path / MANIFEST_NAME
        try:
            if file.is_file() and file.stat().st_size <= MAX_MANIFEST_BYTES:
                data = file.read_bytes()
                decode_manifest(data)
                yield hashlib.sha256(data).hexdigest(), path
        except (BundleError, OSError):
            continue


# --- Reading the papers: of CycloneDX only what a lineage needs. `export.mlbom` writes them.


class _Property(msgspec.Struct):
    name: str
    value: str = ""


class _Pedigree(msgspec.Struct):
    ancestors: list[_Component] = []


class _Component(msgspec.Struct):
    name: str = ""
    properties: list[_Property] = []
    pedigree: _Pedigree = msgspec.field(default_factory=_Pedigree)


class _Metadata(msgspec.Struct, rename="camel"):
    component: _Component


class _Mlbom(msgspec.Struct, rename="camel"):
    bom_format: Annotated[str, msgspec.Meta(pattern=r"^CycloneDX\Z")]
    spec_version: str
    metadata: _Metadata


def _paper_of(bundle: Bundle) -> _Component | None:
    """Return what a bundle's papers say of it; None where it has none.

    Raises:
        BadFormat: they are damaged, or contradict the manifest.
    """
    if not any(entry.name == MLBOM_NAME for entry in bundle.manifest.files):
        return None
    data = bundle.read(MLBOM_NAME)
    if len(data) > MAX_MLBOM_BYTES:
        raise BadFormat(f"{MLBOM_NAME} has {len(data)} bytes", hint=f"At most {MAX_MLBOM_BYTES} are read.")
    try:
        component = msgspec.json.decode(data, type=_Mlbom).metadata.component
    except DAMAGED as error:
        raise BadFormat(f"{MLBOM_NAME}: {str(error)[:200]}", hint=_AGAIN) from error
    said = _values(component)
    for name, value in properties_of(own_link(bundle.manifest, "")).items():
        # Its own digest covers the paper, which so cannot hold it; missing parents are no part of the manifest.
        if name not in ("bundle_sha256", "missing_parents") and said.get(name) != value:
            raise BadFormat(
                f"{MLBOM_NAME} says {name} is {str(said.get(name))[:80]!r}, the manifest {value[:80]!r}",
                hint=_AGAIN,
            )
    return component


def _ancestors_in(paper: _Component | None) -> list[Link]:
    """Return the parents that a bundle's papers tell of; none where it has no papers.

    Raises:
        BadFormat: what they say of one is no bundle.
    """
    return [] if paper is None else _links(paper, MAX_GENERATIONS)


def _finetuned(said: Mapping[str, str]) -> dict[str, str]:
    return {name.removeprefix(FINETUNED): how for name, how in said.items() if name.startswith(FINETUNED)}


def _links(component: _Component, generations: int) -> list[Link]:
    """Return the ancestors of a component that are bundles; others are weights."""
    found = []
    for ancestor in component.pedigree.ancestors:
        said = _values(ancestor)
        if "bundle_sha256" not in said:
            continue
        try:
            found.append(
                Link(
                    name=ancestor.name,
                    bundle_sha256=said["bundle_sha256"],
                    created_utc=said["created_utc"],
                    backbone=said["backbone"],
                    strategy=said["strategy"],
                    weights=Weights(
                        source=said["weights_source"],
                        sha256=None if said["weights_sha256"] == "none" else said["weights_sha256"],
                        licence=said["weights_licence"],
                    ),
                    data_sha256=said["data_sha256"],
                    images=int(said["images"]),
                    finetuned=_finetuned(said),
                    parents=_links(ancestor, generations - 1) if generations > 1 else [],
                    missing=said.get("missing_parents", "").split(),
                )
            )
        except (KeyError, ValueError) as error:
            raise BadFormat(f"{MLBOM_NAME}: ancestor {ancestor.name[:80]!r} lacks {error}", hint=_AGAIN) from error
    return found


def _values(component: _Component) -> dict[str, str]:
    ours = (p for p in component.properties if p.name.startswith(PREFIX))
    return {p.name.removeprefix(PREFIX): p.value for p in ours}
