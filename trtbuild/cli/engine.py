"""``trtbuild engine``: the main job, everything up to verified engines in the store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtbuild.cli.options import (
    JsonOption,
    OfflineOption,
    QuietOption,
    StoreOption,
    finite,
    positive,
)

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE_OR_RECIPE",
        help="A recipe (.toml), .onnx, .pt2, file.py:factory or package.module:factory.",
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="fp32|fp16|bf16|int8|fp8|int4|nvfp4|mxfp4",
        help="int4, nvfp4 and mxfp4 pack weights only.",
    ),
]
BackendOption = Annotated[
    str | None, typer.Option("--backend", metavar="auto|onnxruntime|tensorrt|tensorrt-rtx")
]
ArchOption = Annotated[
    list[str] | None,
    typer.Option("--arch", metavar="ARCH", help="sm_89, sm_120 ...; repeat it."),
]
CalibrationOption = Annotated[
    str | None,
    typer.Option(
        "--calibration", metavar="DATA", help="A provider (.py), .npz or folder of .npy."
    ),
]
EvaluationOption = Annotated[
    str | None, typer.Option("--evaluation", metavar="DATA", help="Other data for evaluation.")
]
MethodOption = Annotated[
    str | None,
    typer.Option("--method", metavar="auto|minmax|percentile|entropy|mse"),
]
TechniqueOption = Annotated[
    list[str] | None,
    typer.Option(
        "--technique",
        metavar="auto|none|equalize|smooth|rounding|bias",
        help="What to do to the weights first; repeat it.",
    ),
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME:MIN,OPT,MAX", help="Sizes joined by x; repeat it."),
]
KeepFloatOption = Annotated[
    list[str] | None,
    typer.Option("--keep-float", metavar="NODE", help="ONNX nodes (patterns) kept in float."),
]
TrtCacheOption = Annotated[
    str | None,
    typer.Option(
        "--from-trt-cache",
        metavar="FILE",
        help="Scales of a TensorRT 4 to 10 calibration cache; implies int8.",
    ),
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        "--policy",
        metavar="auto|all|FILE",
        help="What is quantized: auto searches within --max-drop, all is everything.",
    ),
]
SavePolicyOption = Annotated[
    Path | None,
    typer.Option("--save-policy", metavar="FILE", help="Write the policy that was found."),
]
RestOption = Annotated[
    str | None,
    typer.Option(
        "--rest", metavar="auto|fp32|fp16|bf16", help="What computes around quantized layers."
    ),
]
BlockSizeOption = Annotated[
    int | None,
    typer.Option("--block-size", metavar="128|64|32", help="Largest block of INT4 weights."),
]
SparsityOption = Annotated[
    str | None,
    typer.Option("--sparsity", metavar="2:4", help="Make two of four weights zero."),
]
KeepDenseOption = Annotated[
    list[str] | None,
    typer.Option("--keep-dense", metavar="NODE", help="ONNX nodes (patterns) kept dense."),
]
MaxDropOption = Annotated[
    float | None,
    typer.Option(
        "--max-drop", min=0, callback=finite, help="Gate: largest drop of the metric."
    ),
]
MinSpeedupOption = Annotated[
    float | None,
    typer.Option(
        "--min-speedup",
        callback=positive,
        help="Gate: least speed-up over fp16 (fp32 on a CPU).",
    ),
]
LevelOption = Annotated[int | None, typer.Option("--optimization-level", min=0, max=5)]
WorkspaceOption = Annotated[int | None, typer.Option("--workspace-mib", min=1)]
VersionOption = Annotated[
    bool,
    typer.Option("--version-compatible", help="Loads in later versions of TensorRT too."),
]
HardwareOption = Annotated[
    bool,
    typer.Option("--hardware-compatible", help="Runs on every GPU from Ampere on; slower."),
]
PluginOption = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="LIB", help="A library of plug-ins; repeat it."),
]
TimingOption = Annotated[
    str | None,
    typer.Option(
        "--timing-cache",
        metavar="auto|off|pinned|FILE",
        help="Times of kernels: the store's, none, only those it has, or a file's.",
    ),
]
BuildOption = Annotated[
    list[str] | None,
    typer.Option(
        "--build-option", metavar="NAME=VALUE", help="Any of [build.options]; repeat it."
    ),
]
CalibMemoryOption = Annotated[
    int | None,
    typer.Option(
        "--calib-memory",
        metavar="MIB",
        min=64,
        help="Bound the memory of calibration; the ranges stay the same.",
    ),
]
MarkdownOption = Annotated[
    Path | None, typer.Option("--markdown", metavar="FILE", help="Write the report here too.")
]


def engine(  # noqa: PLR0913  one parameter per option is how Typer works
    source: SourceArgument,
    *,
    precision: PrecisionOption = None,
    backend: BackendOption = None,
    arch: ArchOption = None,
    calibration: CalibrationOption = None,
    evaluation: EvaluationOption = None,
    method: MethodOption = None,
    technique: TechniqueOption = None,
    shape: ShapeOption = None,
    keep_float: KeepFloatOption = None,
    from_trt_cache: TrtCacheOption = None,
    sparsity: SparsityOption = None,
    keep_dense: KeepDenseOption = None,
    policy: PolicyOption = None,
    save_policy: SavePolicyOption = None,
    rest: RestOption = None,
    block_size: BlockSizeOption = None,
    max_drop: MaxDropOption = None,
    min_speedup: MinSpeedupOption = None,
    optimization_level: LevelOption = None,
    workspace_mib: WorkspaceOption = None,
    version_compatible: VersionOption = False,
    hardware_compatible: HardwareOption = False,
    plugin: PluginOption = None,
    timing_cache: TimingOption = None,
    build_option: BuildOption = None,
    calib_memory: CalibMemoryOption = None,
    markdown: MarkdownOption = None,
    store: StoreOption = "",
    _offline: OfflineOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Build, store and verify the engines of a model or recipe."""
    from trtbuild.cli.output import finish, prepare, speaker, write_policy
    from trtbuild.cli.request import Arguments, is_strict, recipe_of
    from trtbuild.pipeline.job import build_recipe

    arguments = Arguments(
        precision=precision,
        backend=backend,
        arch=tuple(arch or ()),
        calibration=calibration,
        evaluation=evaluation,
        method=method,
        technique=tuple(technique or ()),
        shape=tuple(shape or ()),
        keep_float=tuple(keep_float or ()),
        trt_cache=from_trt_cache,
        sparsity=sparsity,
        keep_dense=tuple(keep_dense or ()),
        policy=policy,
        rest=rest,
        block_size=block_size,
        max_drop=max_drop,
        min_speedup=min_speedup,
        optimization_level=optimization_level,
        workspace_mib=workspace_mib,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        plugin=tuple(plugin or ()),
        timing_cache=timing_cache,
        build_option=tuple(build_option or ()),
        calib_memory_mib=calib_memory,
    )
    recipe = recipe_of(source, arguments)
    prepare(markdown, "--markdown")
    prepare(save_policy, "--save-policy")
    report = build_recipe(
        recipe,
        store,
        strict=is_strict(arguments),
        say=speaker(quiet=quiet),
    )
    if save_policy is not None:
        write_policy(report, save_policy)
    finish(report, as_json=as_json, markdown=markdown)
