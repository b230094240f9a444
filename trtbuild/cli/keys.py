"""``trtbuild keys``: make keys, see them, and say in a policy file whose signatures count."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtbuild.cli.options import JsonOption, StoreOption

app = typer.Typer(
    help="Make signing keys, and say whose signatures count.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

PolicyOption = Annotated[
    str,
    typer.Option(
        "--policy",
        envvar="TRTBUILD_POLICY",
        metavar="FILE",
        help="The policy (default: the user's own).",
    ),
]


@app.command()
def generate(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the key.")],
    *,
    use: Annotated[
        bool, typer.Option("--use", help="Let engine and nightly sign with it.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make an Ed25519 key; its private half stays here, in a file that only you can read.

    TRTBUILD_KEY_PASSPHRASE, if it is set, encrypts it, and is needed to sign with it then.
    """
    from trtbuild.cli.output import print_json
    from trtbuild.pipeline.chosen_key import choose_key
    from trtbuild.pipeline.key_files import make_key

    key, path = make_key(name)
    if use:
        choose_key(name)
    public = key.public
    if json:
        document = {"name": name, "keyid": public.keyid, "public": public.text}
        print_json({"schema": 1, **document, "private": str(path), "used": use})
        return
    typer.echo(f"key {name} {public.keyid}\n  private: {path}\n  public:  {public.text}")
    if use:
        typer.echo("  trtbuild engine and nightly sign with it from now on")
    typer.echo("Who should load what it signs runs one of these, by what it is to sign:")
    for role in ("builder", "promoter"):
        typer.echo(f"  trtbuild keys trust {public.text} --name {name} --role {role}")


@app.command()
def use(
    name: Annotated[str, typer.Argument(metavar="NAME", help="One of your keys.")],
) -> None:
    """Let engine and nightly sign with a key that you have."""
    from trtbuild.pipeline.chosen_key import choose_key
    from trtbuild.pipeline.key_files import load_key

    key = load_key(name).public
    choose_key(name)
    typer.echo(f"trtbuild engine and nightly sign with {name} {key.keyid} from now on")


@app.command("list")
def list_keys(policy: PolicyOption = "", *, json: JsonOption = False) -> None:
    """List your own keys, and those of the policy in force."""
    from trtbuild.cli.output import print_json
    from trtbuild.pipeline.chosen_key import chosen_key
    from trtbuild.pipeline.key_files import own_keys
    from trtbuild.runtime.trust_files import load_policy, policy_name
    from trtbuild.trust.policy import keyring

    name = policy_name(policy)
    rules = load_policy(name)
    own, trusted, revoked = own_keys(), keyring(rules).trusted, rules.revoked_keys()
    engines = rules.revoked_engines()
    if json:
        mine = [
            {
                "name": each,
                "keyid": key.keyid,
                "public": key.text,
                "used": each == chosen_key(),
                "revoked": key.keyid in revoked,
            }
            for each, key in own.items()
        ]
        theirs = [
            {"keyid": keyid, "revoked": keyid in revoked, "key": key}
            for keyid, key in trusted.items()
        ]
        print_json(
            {
                "schema": 1,
                "own": mine,
                "policy": name,
                "trusted": theirs,
                "revoked": {"keys": revoked, "engines": engines},
            }
        )
        return
    typer.echo("your keys:" if own else "you have no keys: trtbuild keys generate NAME")
    for each, key in own.items():
        used = "  (signs)" if each == chosen_key() else ""
        if key.keyid in revoked:
            used = f"  REVOKED{used and ': nothing is signed with it, make another (--use)'}"
        typer.echo(f"  {each}  {key.keyid}{used}")
        typer.echo(f"    {key.text}")
    typer.echo(f"policy {name}:{'' if trusted else ' trusts no key'}")
    for keyid, trust in trusted.items():
        word = "REVOKED" if keyid in revoked else trust.role
        typer.echo(f"  {trust.name}  {keyid}  {word} of {', '.join(trust.models)}")
    for kind, found in (("key", revoked), ("engine", engines)):
        for digest, reason in found.items():
            if digest not in trusted:
                typer.echo(f"  {kind} {digest}  REVOKED{reason and f': {reason}'}")


@app.command()
def trust(
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="A public key, its file, or your key's name.")
    ],
    *,
    name: Annotated[str, typer.Option("--name", help="What to call it in the policy.")] = "",
    role: Annotated[
        str, typer.Option("--role", metavar="builder|promoter", help="What it may sign.")
    ] = "builder",
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="PATTERN", help="Recipes' names (default: all)."),
    ] = None,
    policy: PolicyOption = "",
) -> None:
    """Add a key to the policy. Where there is none it is made, and refuses unsigned engines."""
    from trtbuild.cli.policy_file import add_key, told_if_new

    told = told_if_new(policy)
    path, keyid = add_key(key, name=name, role=role, models=tuple(models or ("*",)), at=policy)
    typer.echo(f"{path}: trusts {keyid} as {role} of {', '.join(models or ('*',))}{told}")


@app.command()
def revoke(
    what: Annotated[
        str,
        typer.Argument(
            metavar="KEY_OR_ENGINE",
            help="A key's name, file or id; an engine's digest; 6 or more first digits.",
        ),
    ],
    *,
    reason: Annotated[str, typer.Option("--reason", help="Shown wherever it is met.")] = "",
    policy: PolicyOption = "",
    store: StoreOption = "",
) -> None:
    """Revoke a key or an engine in the policy: nothing of it is loaded from now on.

    A policy that is made for it refuses unsigned engines, too.
    """
    from trtbuild.cli.policy_file import add_revoked, told_if_new

    told = told_if_new(policy)
    path, kind, digest = add_revoked(what, reason, policy, store)
    typer.echo(f"{path}: {kind} {digest} is revoked{told}")


@app.command("export-bundle")
def export_bundle(
    engine: Annotated[str, typer.Argument(metavar="ENGINE", help="As everywhere.")],
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the files go.")
    ],
    store: StoreOption = "",
) -> None:
    """Write what was signed of an engine as Sigstore bundles (v0.3), one file per signature."""
    from trtbuild.cli.output import writing
    from trtbuild.engine import Manifest
    from trtbuild.store import Store, find_engine
    from trtbuild.store.statements import statements
    from trtbuild.trust.bundle import bundles

    opened = Store.open_existing(store)
    sha256 = find_engine(opened, engine).read(Manifest).sha256
    found = bundles(statements(opened, sha256))
    with writing(out, "--out"):
        out.mkdir(parents=True, exist_ok=True)
        for name, data in found.items():
            (out / name).write_bytes(data)
            typer.echo(str(out / name))
    if not found:
        typer.echo(f"engine {sha256[:12]} is unsigned: nothing was written", err=True)
