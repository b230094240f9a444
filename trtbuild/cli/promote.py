"""``trtbuild promote``: sign that an engine may be served."""

from __future__ import annotations

from typing import Annotated

import typer

from trtbuild.cli.cache import EngineArgument
from trtbuild.cli.keys import PolicyOption
from trtbuild.cli.options import JsonOption, OfflineOption, StoreOption


def promote(  # noqa: PLR0913  one parameter per option is how Typer works
    engine: EngineArgument,
    *,
    key: Annotated[
        str,
        typer.Option("--key", metavar="NAME", help="Sign with this key or file."),
    ] = "",
    model: Annotated[
        str, typer.Option("--model", help="As this model (default: its recipe's name).")
    ] = "",
    days: Annotated[int, typer.Option("--days", min=1, max=3650, help="Valid so long.")] = 90,
    cosign: Annotated[
        bool, typer.Option("--cosign", help="Add a signature to the last promotion.")
    ] = False,
    policy: PolicyOption = "",
    store: StoreOption = "",
    json: JsonOption = False,
    _offline: OfflineOption = False,
) -> None:
    """Sign a new release of an engine, after checking what its builder signed.

    Needs a policy that trusts the builder. Without --key, TRTBUILD_SIGNING_KEY signs, or the
    key that 'keys generate --use' made.
    """
    from trtbuild.cli.output import print_json
    from trtbuild.errors import UsageError
    from trtbuild.pipeline.chosen_key import chosen_key
    from trtbuild.pipeline.promotion import Promotion
    from trtbuild.pipeline.promotion import promote as sign
    from trtbuild.pipeline.signing import signer
    from trtbuild.runtime.trust_files import load_policy, policy_name
    from trtbuild.store import Store

    name = key or chosen_key()
    if not name:
        message = "no key to sign with: give --key; 'trtbuild keys generate NAME' makes one"
        raise UsageError(message)
    rules = load_policy(policy_name(policy))
    promotion = Promotion(
        engine=engine, policy=rules, by=signer(name, days), model=model, cosign=cosign
    )
    release = sign(Store.open_existing(store).settled(), promotion)
    if json:
        print_json({"schema": 1, "release": release})
        return
    typer.echo(
        f"{'cosigned' if cosign else 'promoted'}: {release.model} on {release.target}, release "
        f"{release.seq}, valid until {release.expires}"
    )
