"""Applies builder settings to TensorRT's objects, and sees that each took effect.

A refused setter of TensorRT only logs an error and goes on, so each is read back, the log is
scanned after it, and all flags are read again at the end: setting one can unset another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from trtbuild.backends import trt_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from trtbuild.backends.trt_log import Refusal
    from trtbuild.engine import Setting

_T = TypeVar("_T")


class Settings:
    """One builder configuration of TensorRT, and how its refusals are told."""

    def __init__(self, trt: Any, config: Any, refusal: Refusal) -> None:  # noqa: ANN401  untyped bindings
        self._trt = trt
        self._config = config
        self._refusal = refusal
        self._flags: dict[str, bool] = {}

    def take(
        self,
        name: str,
        value: _T,
        apply: Callable[[_T], object],
        read: Callable[[], object],
    ) -> None:
        """Apply one setting; refused means False, another value, or an error in the log.

        Raises:
            BuildError: TensorRT refused it, or has another value.
        """
        messages = self._refusal.messages
        messages.errors.clear()
        try:
            accepted = apply(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise self._refusal.error(f"refuses {name} = {value}", [_said(error)]) from error
        got = read()
        if accepted is False or got != value or messages.errors:
            raise self._refusal.error(
                f"did not take {name} = {value}, it has {got}", messages.errors
            )

    def flag(self, name: str, member: str, *, wanted: bool) -> None:
        """Set or clear a builder flag; one that this version lacks can only be off."""
        known = self._trt.BuilderFlag.__members__
        if member not in known:
            if wanted:
                raise self._lacks(name)
            return
        flag = known[member]
        self._flags[member] = wanted
        self.take(
            name,
            wanted,
            lambda on: (self._config.set_flag if on else self._config.clear_flag)(flag),
            lambda: self._config.get_flag(flag),
        )

    def apply(self, settings: Mapping[str, Setting]) -> None:
        """Apply every setting but those of other modules (plug-ins, refit marks, timing).

        ``settings`` holds those that the backend honors. A value that leaves the choice to
        TensorRT is not set.

        Raises:
            BuildError: TensorRT refused one, uses another value, or does not have it.
        """
        self._limits(settings)
        verbosity = self._trt.ProfilingVerbosity.DETAILED
        self._property("profiling_verbosity", "profiling_verbosity", verbosity)
        # fp32 means fp32: TF32, on by default, keeps 10 bits of the mantissa.
        self.flag("tf32", "TF32", wanted=False)
        for name, member in trt_settings.FLAGS.items():
            if name in settings:
                self.flag(name, member, wanted=bool(settings[name]))
        for name, (attribute, unit) in trt_settings.NUMBERS.items():
            if self._is_chosen(settings, name):
                self._property(name, attribute, int(settings[name]) * unit)
        for name, attribute in trt_settings.TEXTS.items():
            if self._is_chosen(settings, name):
                self._property(name, attribute, settings[name])
        for name, (attribute, enum) in trt_settings.WORDS.items():
            if self._is_chosen(settings, name):
                self._property(name, attribute, self._member(name, enum, settings[name]))
        core = int(settings.get("dla_core", -1))
        if core >= 0:
            self._dla(core)
        self._share_profiles()

    def check_flags(self) -> None:
        """See that no flag was undone by a later setting.

        Raises:
            BuildError: one was.
        """
        for member, wanted in self._flags.items():
            if self._config.get_flag(self._trt.BuilderFlag.__members__[member]) != wanted:
                raise self._refusal.error(
                    f"did not take {member} = {wanted} together with the other settings",
                    self._refusal.messages.warnings,
                )

    @staticmethod
    def _is_chosen(settings: Mapping[str, Setting], name: str) -> bool:
        """Tell whether a value is somebody's choice: the level is always ours."""
        always = name == "optimization_level"
        return name in settings and (always or settings[name] != trt_settings.OPTIONS[name])

    def _share_profiles(self) -> None:
        """Let several execution contexts use one profile, which newer versions always do.

        In 8.6 a profile belongs to the first context that uses it, so that a pool of contexts,
        or a context per CUDA graph, would get none (NvInfer.h 8.6, ``kPROFILE_SHARING_0806``;
        10 has it on for good, 11 has no such name).
        """
        sharing = self._trt.PreviewFeature.__members__.get("PROFILE_SHARING_0806")
        config = self._config
        if sharing is not None and not config.get_preview_feature(sharing):
            self.take(
                "profile sharing",
                True,  # noqa: FBT003  what is asked for
                lambda on: config.set_preview_feature(sharing, on),
                lambda: config.get_preview_feature(sharing),
            )

    def _property(self, name: str, attribute: str, value: object) -> None:
        config = self._config
        if not hasattr(config, attribute):
            raise self._lacks(name)
        self.take(
            name,
            value,
            lambda wanted: setattr(config, attribute, wanted),
            lambda: getattr(config, attribute),
        )

    def _limits(self, settings: Mapping[str, Setting]) -> None:
        for name, (pool, unit) in trt_settings.POOLS.items():
            if name == "workspace_mib" or self._is_chosen(settings, name):
                self._limit(name, pool, int(settings[name]) * unit)

    def _limit(self, name: str, pool_name: str, limit_bytes: int) -> None:
        pool = self._trt.MemoryPoolType.__members__[pool_name]
        self.take(
            name,
            limit_bytes,
            lambda value: self._config.set_memory_pool_limit(pool, value),
            lambda: self._config.get_memory_pool_limit(pool),
        )

    def _member(self, name: str, enum: str, word: Setting) -> object:
        members = getattr(self._trt, enum).__members__ if hasattr(self._trt, enum) else {}
        if str(word).upper() not in members:
            raise self._lacks(f"{name} = {word}")
        return members[str(word).upper()]

    def _dla(self, core: int) -> None:
        self._property(
            "dla_core, layers on DLA", "default_device_type", self._trt.DeviceType.DLA
        )
        self._property("dla_core", "DLA_core", core)

    def _lacks(self, name: str) -> Exception:
        return self._refusal.error(f"has no setting {name}", [])


def _said(error: Exception) -> str:
    """Return what an error says, without the signatures that the bindings list."""
    return " ".join(str(error).partition("The following argument types")[0].split())
