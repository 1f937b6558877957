"""How a slug was made, as an in-toto Statement v1 with a SLSA provenance v1 predicate (slsa.dev/spec/v1.0/provenance).

It holds no time and no id of a build: the same source, stacks, buildpacks and compiler give the same statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement

PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:blackstart:build:slug:v1"
COMPILER = "urn:blackstart:builder:compile"
CHECKOUT = "urn:blackstart:builder:checkout"


@dataclass(frozen=True)
class Builder:
    """What made a slug. `id` is COMPILER, then `sha256` is the compiler's own slug; or CHECKOUT, then its source's."""

    id: str
    sha256: str


@dataclass(frozen=True)
class Made:
    """A slug of `app` and what it was made from; every digest is a sha256 in hex, `stacks` are full image names."""

    app: str
    slug: str
    source: str
    stacks: tuple[str, ...]
    buildpacks: tuple[tuple[str, str], ...]
    builder: Builder


def statement(made: Made) -> dict[str, Any]:
    """Return the statement, as JSON has it."""
    subject = ResourceDescriptor(name=f"{made.app}.squashfs", digest={"sha256": made.slug})
    found = Statement([subject.pb], PREDICATE, _predicate(made))
    found.validate()
    shown: dict[str, Any] = MessageToDict(found.pb)
    return shown


def _predicate(made: Made) -> dict[str, Any]:
    predicate = provenance_pb2.Provenance()
    definition = predicate.build_definition
    definition.build_type = BUILD_TYPE
    definition.external_parameters.update({"app": made.app, "source": f"sha256:{made.source}"})
    packs = [{"name": name, "version": version} for name, version in made.buildpacks]
    definition.internal_parameters.update({"buildpacks": packs})
    definition.resolved_dependencies.append(_described("source", made.source))
    definition.resolved_dependencies.extend(_stack(name) for name in made.stacks)
    predicate.run_details.builder.id = made.builder.id
    of_builder = "compile.squashfs" if made.builder.id == COMPILER else "source of compile"
    predicate.run_details.builder.builder_dependencies.append(_described(of_builder, made.builder.sha256))
    shown: dict[str, Any] = MessageToDict(predicate)
    return shown


def _stack(image: str) -> Any:
    name, _, digest = image.rpartition(":")
    return _described(name, digest)


def _described(name: str, sha256: str) -> Any:
    return ResourceDescriptor(name=name, digest={"sha256": sha256}).pb


def buildpacks(result: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Return (name, version) of each buildpack in a build's result."""
    return tuple((str(one.get("name", "")), str(one.get("version", ""))) for one in result)
