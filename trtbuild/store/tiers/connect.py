"""From an address to a tier: what a scheme needs is imported only where a URI has it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from trtbuild.errors import MissingBackendError

if TYPE_CHECKING:
    from trtbuild.store.tiers.address import Address
    from trtbuild.store.tiers.tier import Tier


def connect(address: Address) -> Tier:
    """Return the tier of ``address``; nothing is contacted yet.

    Raises:
        MissingBackendError: the package for it is not installed.
        TierError: its configuration cannot be used.
    """
    if address.scheme == "file":
        from trtbuild.store.tiers.folder import FolderTier

        return FolderTier(root=Path(address.place))
    if address.scheme == "oci":
        from trtbuild.store.tiers.oci import open_oci

        return open_oci(address)
    if importlib.util.find_spec("obstore") is None:
        raise MissingBackendError(
            f'{address.shown}: needs the package obstore: pip install "trtbuild[remote]"'
        )
    from trtbuild.store.tiers.objects import open_objects

    return open_objects(address)
