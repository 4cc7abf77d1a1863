"""What a cloud's quotas still allow a launch to make, while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pool.rules import SERVERS, Need, Room, lacks, plan_launches, room_for, whole


class Allowance:
    """What is left of quotas, asked for once and counted down as machines are asked for; image types by id.

    The cloud's answer covers all servers that existed then. Until it is known, and for resources without a known
    limit, nothing is limited.
    """

    def __init__(self) -> None:
        self._left: Mapping[str, int] | None = None
        self._takes: dict[int, Mapping[str, int]] = {}  # what one machine takes, by image type
        self._spent: Counter[str] = Counter()

    @property
    def known(self) -> bool:
        """Whether the cloud has been asked."""
        return self._left is not None

    def know(self, left: Mapping[str, int]) -> None:
        """Save what is left before this run asks for its first machine."""
        self._left = left

    def takes(self, image_id: int) -> bool:
        """Return whether it is known what a machine of an image type takes."""
        return image_id in self._takes

    def learn(self, image_id: int, takes: Mapping[str, int]) -> None:
        """Save what a machine of an image type takes."""
        self._takes[image_id] = takes

    def spend(self, image_id: int) -> None:
        """Count a machine that is asked for."""
        self._spent.update(self._takes.get(image_id, {}))

    def give_back(self, image_id: int) -> None:
        """Stop counting a machine that the cloud refused."""
        self._spent.subtract(self._takes.get(image_id, {}))

    @property
    def rest(self) -> dict[str, int]:
        """What is left now of each resource with a known limit."""
        return {name: number - self._spent[name] for name, number in (self._left or {}).items()}

    def room(self, image_id: int, most: int, besides: Sequence[str] = (), size: int = 1) -> Room:
        """Return for how many machines of an image type there is room, up to `most`.

        besides: resources that they have already; size: how many servers each machine consists of.
        """
        takes = {name: amount * size for name, amount in self._takes.get(image_id, {}).items() if name not in besides}
        return room_for(takes, self.rest, most)

    def plan(self, needs: Sequence[Need], servers: int, last: int | None = None) -> tuple[list[int], dict[int, Room]]:
        """Return the image types to launch, an id for each machine, and the room of those that quotas leave short.

        servers: how many more servers the provider may have, quotas aside; last as in plan_launches.
        """
        needs = [replace(need, takes=self._takes.get(need.image_id, {})) for need in needs]
        plan = plan_launches(needs, servers, self.rest, last)
        needs = [replace(need, takes=whole(need)) for need in needs]
        taken: Counter[str] = Counter()
        for need in needs:
            taken.update({name: amount * plan.count(need.image_id) for name, amount in need.takes.items()})
        rest = {name: number - taken[name] for name, number in {**self.rest, SERVERS: servers}.items()}
        counts = Counter(plan)
        starved = [need for need in needs if not need.present + counts[need.image_id]]
        kept = sorted({name for need in starved for name in lacks(need, rest)} - {SERVERS})
        short = {}
        for need in needs:
            missing = need.min_ready - need.present - counts[need.image_id]
            if missing > 0 and rest[SERVERS] >= need.size:  # even if that is left for a type without machines
                found = [name for name in room_for(need.takes, rest, missing).short if name != SERVERS] or kept
                if found:
                    short[need.image_id] = Room(counts[need.image_id], found)
        return plan, short
