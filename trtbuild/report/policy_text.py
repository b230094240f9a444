"""The policy that a run found, as a file to read, edit and commit."""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING

from trtbuild.quantization.policy import Policy, to_toml

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trtbuild.quantization.policy import Word
    from trtbuild.report.document import KeptNode, PolicyReport


def policy_text(name: str, word: Word, policies: Iterable[PolicyReport]) -> str:
    """Return the policy file of ``policies``, one of each scheme, for the recipe ``name``.

    A file is for all schemes: what one of them leaves in floating point, all do. The node that
    costs most comes first.
    """
    found = list(policies)
    kept: dict[str, Word] = {}
    comments: dict[str, list[str]] = {}
    for policy in found:
        for node in policy.kept:
            pattern = glob.escape(node.node)
            kept[pattern] = "rest"
            comments.setdefault(pattern, []).append(_cost(policy.scheme, node))
    lines = [f"What of {name} stays in floating point, found by trtbuild."]
    lines += [f"{policy.scheme}: {policy.reason}" for policy in found]
    joined = {node: "; ".join(texts) for node, texts in comments.items()}
    return to_toml(Policy(default=word, nodes=kept), "\n".join(lines), joined)


def _cost(scheme: str, node: KeptNode) -> str:
    words = [f"{100 * node.mac_share:.1f} % of the MACs"]
    if node.sqnr_db is not None:
        how = "measured" if node.measured else "estimated"
        words.append(f"SQNR {node.sqnr_db:.1f} dB with it alone quantized ({how})")
    if node.drop is not None:
        words.append(f"drop {node.drop:+.4f}")
    return f"{scheme}: {', '.join(words)}"
