"""Which roles of attention heads the weights show: where they look by position, and whether they copy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from diffai_jupyter.evidence import Unknowable
from diffai_jupyter.facts import fact
from diffai_jupyter.facts.attention.spans import Case, Reaches, reaches
from diffai_jupyter.facts.attention.specialization import Copying, copying
from diffai_jupyter.scan.pair import Pair


class Role(Enum):
    """What a head does."""

    PREVIOUS = "looks at the token before"
    CURRENT = "looks at the token itself"
    NEAR = "looks at near tokens"
    COPYING = "copies the token it looks at"


@dataclass(frozen=True, slots=True)
class HeadRole:
    """A role of one head.

    Parameters
    ----------
    key, name : str
        Of its layer.
    head : int
        Its number in the layer.
    role : Role
        The role.
    score : float
        How clear it is: a share of attention, a span, or a share of eigenvalues.
    """

    key: str
    name: str
    head: int
    role: Role
    score: float


@dataclass(frozen=True, slots=True)
class Roles:
    """What weights show of the roles of one side.

    Parameters
    ----------
    reaches : Reaches, optional
        Where heads look by position, where that follows from a bias that is added to the scores.
    copying : Copying, optional
        How much heads copy.
    """

    reaches: Reaches | None
    copying: Copying | None

    @property
    def is_copying_known(self) -> bool:
        """Whether copying could be looked at."""
        return self.copying is not None

    @property
    def trust(self) -> float:
        """Probability that heads are cut as they were."""
        return min(found.confidence for found in (self.reaches, self.copying) if found is not None)

    def recognized(self, copying_share: float, token_share: float, near_span: float) -> tuple[HeadRole, ...]:
        """Return the roles that are clear enough, in the order of `Role`.

        Parameters
        ----------
        copying_share : float
            Least share of positive eigenvalues of a head that copies.
        token_share : float
            Least share of attention on one position.
        near_span : float
            Largest span of a head that looks at near tokens, where a slope alone decides it.
        """
        by_role: dict[Role, list[HeadRole]] = {role: [] for role in Role}
        for found in self._by_position(token_share, near_span) + self._by_copying(copying_share):
            by_role[found.role].append(found)
        return tuple(role for found in by_role.values() for role in found)

    def _by_position(self, token_share: float, near_span: float) -> list[HeadRole]:
        found: list[HeadRole] = []
        if self.reaches is None:
            return found
        for layer in self.reaches.layers:
            for key, name in zip(layer.keys, layer.names, strict=True):
                for head, where in enumerate(layer.heads):
                    if self.reaches.case is Case.SLOPES:
                        if where.span < near_span:
                            found.append(HeadRole(key, name, head, Role.NEAR, where.span))
                        continue
                    for role, share in ((Role.PREVIOUS, where.previous), (Role.CURRENT, where.current)):
                        if share >= token_share:
                            found.append(HeadRole(key, name, head, role, share))
        return found

    def _by_copying(self, copying_share: float) -> list[HeadRole]:
        if self.copying is None:
            return []
        return [
            HeadRole(layer.key, layer.name, head, Role.COPYING, share)
            for layer in self.copying.layers
            for head, share in enumerate(layer.shares)
            if share >= copying_share
        ]


@fact
def roles(pair: Pair, side: int) -> Roles:
    """Return what the weights of one side show of roles.

    Parameters
    ----------
    pair : Pair
        The pair.
    side : int
        `A` or `B` of `diffai_jupyter.facts.weights.stored`.

    Raises
    ------
    Unknowable
        Where they show nothing: the reason of `copying`.
    """
    miss: Unknowable | None = None
    where: Reaches | None = None
    copied: Copying | None = None
    try:
        copied = copying(pair, side)
    except Unknowable as found:
        miss = found
    try:
        where = reaches(pair, side)
    except Unknowable as found:
        miss = miss or found
    if where is not None and where.case is Case.TABLE:
        where = None
    if where is None and copied is None:
        assert miss is not None
        raise miss
    return Roles(where, copied)
