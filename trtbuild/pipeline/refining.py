"""Apply a recipe's techniques around the search for a method, or try those that are quick."""

from __future__ import annotations

import glob
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trtbuild.pipeline.keeping import assigned
from trtbuild.pipeline.ranges import ranges_for
from trtbuild.pipeline.search import Candidate
from trtbuild.pipeline.techniques import ADJUSTING, MIGRATING, Adjusting, migrated
from trtbuild.quantization import quantize as quantizer

if TYPE_CHECKING:
    from trtbuild.backends.scheme import Scheme
    from trtbuild.pipeline.context import Context
    from trtbuild.pipeline.search import Found, Search
    from trtbuild.pipeline.source import Data


@dataclass(frozen=True, kw_only=True)
class Refining:
    """The techniques of one scheme: those that are listed, or those that prove themselves."""

    context: Context
    data: Data
    scheme: Scheme
    search: Search

    @property
    def _listed(self) -> tuple[str, ...]:
        techniques = self.context.recipe.quantization.techniques
        return () if techniques == "auto" else techniques

    @property
    def _searches(self) -> bool:
        table = self.context.recipe.quantization
        return table.method == "auto" and table.techniques == "auto"

    def prepared(self, start: Candidate) -> Candidate:
        """Return ``start`` with the listed techniques that keep what the graph computes."""
        for technique in MIGRATING:
            if technique in self._listed:
                start = self._migrated(start, technique) or start
        return start

    def refined(self, found: Found) -> Found:
        """Try what could be better than one method on the graph as it is."""
        if self._searches:
            for technique in MIGRATING:
                candidate = self._migrated(found.candidate, technique)
                if candidate is not None:
                    found = self.search.migrated(found, candidate)
        if self.context.recipe.quantization.method == "auto":
            found = self.search.grouped(found)
        return found

    def finished(self, found: Found) -> Found:
        """Return ``found`` with the weights and biases that its network is to have.

        Rounding needs the second moments of every layer's input, so it must be asked for.
        """
        adjusting = Adjusting(
            context=self.context,
            data=self.data,
            scheme=self.scheme,
            original=found.candidate.graph,
        )
        if self._searches:
            plan = adjusting.adjusted(found.plan, "bias")
            return self.search.adjusted(found, plan, "bias") if plan is not None else found
        for technique in ADJUSTING:
            plan = (
                adjusting.adjusted(found.plan, technique) if technique in self._listed else None
            )
            if plan is not None:
                found = replace(found, name=f"{found.name} + {technique}", plan=plan)
        return found

    def _migrated(self, start: Candidate, technique: str) -> Candidate | None:
        """Return the graph that ``technique`` makes of that of ``start``, None if the same."""
        graph = migrated(self.context, start.graph, self.data, start.placement, technique)
        if graph is None:
            return None
        kept = assigned(self.context, start.graph).unquantized | start.kept
        names = tuple(glob.escape(name) for name in sorted(kept))
        placement = quantizer.placement_of(graph, self.scheme, names)
        ranges, _ = ranges_for(self.context, graph, self.data, self.scheme, placement)
        return Candidate(
            graph=graph,
            placement=placement,
            ranges=ranges,
            words=(*start.words, technique),
            kept=start.kept,
        )
