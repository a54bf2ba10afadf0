"""Says in our words what Ray says of a cluster, a node or a worker that cannot be used."""

from __future__ import annotations

import re

from helios_cli.errors import HeliosError, MachineError

PATIENCE_SECONDS = 90
"""Seconds for which an actor may be out of reach before it counts as lost. Ray finds a dead node in about half."""


def no_cluster(address: str, why: str) -> MachineError:
    return MachineError(
        f"no Ray cluster at {address}: {why}",
        hint="start one with `ray start --head`, or use --cluster local for this machine's GPUs",
    )


REFUSALS = (
    (
        r"ray\[client\]",
        "{address}: Ray Client is not installed",
        "pip install 'helios-render[ray]'",
    ),
    (
        "Unauthenticated|AuthToken|authentication",
        "the cluster at {address} refused this machine: Ray's token is missing or wrong",
        "set RAY_AUTH_MODE=token, and copy ~/.ray/auth_token from the head of the cluster to this machine",
    ),
    (
        "No node info found",
        "this machine is not a node of the Ray cluster at {address}",
        "run `ray start --address {address}` here, or use ray://HOST:10001 of the head",
    ),
    (
        "",
        "what listens at {address} does not answer as a Ray cluster does: {said}",
        "`ray start --head` listens at port 6379, and at 10001 for ray://; with a token, set RAY_AUTH_MODE=token",
    ),
)
"""Patterns of Ray's words when it cannot connect, each with ours and a hint."""


def refusal(address: str, said: str) -> HeliosError:
    """Return what Ray said when it could not connect, in our words."""
    if "Version mismatch" in said:
        versions = re.findall(r"(Ray|Python): (\S+)", said)
        theirs, ours = (" and ".join(f"{what} {which}" for what, which in versions[at : at + 2]) for at in (0, 2))
        return MachineError(
            f"the cluster at {address} has {theirs}, this machine has {ours}; they must be the same",
            hint="install the cluster's versions here, in an environment of their own",
        )
    if "Could not find any running Ray" in said:
        return no_cluster(address, "none runs on this machine, and RAY_ADDRESS is not set")
    what, hint = next((what, hint) for pattern, what, hint in REFUSALS if re.search(pattern, said))
    first_line = said.strip().partition("\n")[0].rstrip(".")
    return MachineError(what.format(address=address, said=first_line), hint=hint.format(address=address))


def broken_node(said: str) -> HeliosError | None:
    """The error of a node that can run no worker at all, from what Ray says of an actor."""
    if missing := re.search(r"No module named '(helios_\w+)", said):
        host = re.search(r"\bip=([^,)\s]+)", said)
        return MachineError(
            f"helios is not installed on the node {host[1] if host else 'of the cluster'}: no module {missing[1]}",
            hint="install it in the environment in which `ray start` runs there: pip install 'helios-render[ray]'",
        )
    return None


def reason_of(said: str) -> str:
    """Return why an actor is lost, from what Ray says of it, in one line."""
    if re.search(r"out of memory|low on memory|memory usage|OOM", said):
        return "its node ran out of memory, and Ray ended the worker"
    if re.search(
        r"node (has |is )?(died|dead|unreachable)|node was (terminated|lost)|node failure", said, re.IGNORECASE
    ):
        return "its node was lost"
    if "unavailable" in said:
        return f"its node could not be reached for {PATIENCE_SECONDS} s"
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("\t")]
    return lines[-1] if lines else "its process ended"


def place_of(address: str) -> str:
    """The cluster at an address, in words."""
    return "this machine" if address == "local" else f"the Ray cluster at {address}"
