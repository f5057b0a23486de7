"""The manifests, rendered by `kubectl`, checked against the Kubernetes schemas, and converted to commands.

`KUBECTL` names the program to use; without it, a pinned Debian package is fetched once into `.cache`. A kubectl on
PATH is never used: the output depends on the version.
"""

from __future__ import annotations

import os
import re
import subprocess
from functools import cache
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import yaml

from stepflow.dev.debian import Program, Release, fetch

from . import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MANIFESTS = ROOT / "deploy" / "k8s"

RENDER_TIMEOUT_S = 60

KUBERNETES_VERSIONS = ("1.30", "1.36")
"""The oldest supported version (`preStop.sleep`), and that of the pinned kubectl."""

KUBECTL = Program(
    name="kubectl",
    package="kubectl",
    variable="KUBECTL",
    own="install kubectl 1.32 or later and name it: KUBECTL=/path/to/kubectl",
    releases=(
        Release(
            "forky",
            "1.36.4+ds-1",
            {
                "amd64": "407dad9ec755a64ef8c96dd2f5c0c093f9d334193c91cc0ce8424928cd5734d3",
                "arm64": "5710b3f09f454702b7342852021612d0215bbcaa2520cb539ff0105b1e349e2c",
            },
        ),
        Release(
            "trixie",
            "1.32.3+ds-2",
            {
                "amd64": "9825aaf4c14913027aae04af8688e580459f781c829bd5de00cc4dc2cc5a867f",
                "arm64": "b85800b5e2d2ecc958e2b9dfa7d4ce13b14e1175242de1f71acb4fa4b0b63212",
            },
        ),
    ),
)


@cache
def kubectl() -> str:
    return os.environ.get("KUBECTL") or str(fetch(KUBECTL, ROOT / ".cache"))


@cache
def _rendered(folder: Path) -> str:
    # Without a cluster, and without the user's kubeconfig.
    done = subprocess.run(
        [kubectl(), "kustomize", str(folder)],
        env={"PATH": os.defpath, "KUBECONFIG": os.devnull},
        capture_output=True,
        text=True,
        timeout=RENDER_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "kustomize warns"
    return done.stdout


def render(folder: Path) -> list[dict[str, Any]]:
    """Return the resources that `kubectl kustomize` renders from a folder."""
    return list(yaml.safe_load_all(_rendered(folder)))


def faults(resource: dict[str, Any], version: str) -> str:
    """Validate a resource against the strict schema of its kind; return the errors, empty if it is valid."""
    try:
        kubernetes_validate.validate(resource, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        place = ".".join(str(part) for part in error.path)
        return f"{resource['kind']} {resource['metadata']['name']}: {place}: {error.message}"
    return ""


def of_kind(resources: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """Return the resources of a kind by name."""
    return {item["metadata"]["name"]: item for item in resources if item["kind"] == kind}


def container_of(workload: dict[str, Any]) -> dict[str, Any]:
    """Return the only container of a Deployment or StatefulSet."""
    (container,) = workload["spec"]["template"]["spec"]["containers"]
    return dict(container)


def command_of(container: Mapping[str, Any], fields: Mapping[str, str]) -> list[str]:
    """Return command and arguments as the kubelet runs them. `fields`: values of fieldRefs such as `status.podIP`."""
    env: dict[str, str] = {}
    for item in container.get("env", ()):
        if "value" in item:  # references to unknown variables stay unexpanded
            env[item["name"]] = _expand(item["value"], env)
        else:
            env[item["name"]] = fields[item["valueFrom"]["fieldRef"]["fieldPath"]]
    return [_expand(argument, env) for argument in (*container["command"], *container.get("args", ()))]


def _expand(text: str, env: Mapping[str, str]) -> str:
    return re.sub(r"\$\((\w+)\)", lambda found: env.get(found[1], found[0]), text)


__all__ = ["KUBERNETES_VERSIONS", "MANIFESTS", "command_of", "container_of", "faults", "of_kind", "render"]
