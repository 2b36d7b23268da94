"""Releases that reach a channel's devices at once or in waves, in one transaction of the fleet's database.

`sdk.fleet.rollout` decides; here is what it decides on, and what becomes of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import msgspec
from sqlalchemy import select, update

from sdk.errors import FleetError
from sdk.fleet.channel_ledger import ChannelLedger, Device, Publication, device_of, is_there
from sdk.fleet.rollout import CLOCK_STEP_S, Decision, Doing, Member, Plan, Rollout, RolloutState, Step, decide
from sdk.fleet.tables import AssignmentRow, DeviceRow, PublicationRow, ReleaseRow, RolloutRow
from sdk.release import Release
from sdk.wire import Desired, UpdateState

KEPT_RELEASES: Final = 3
"""The one that serves and two to go back to: their feature spaces keep their codes."""


class RolloutLedger(ChannelLedger):
    """What is being rolled out, and what every device should run."""

    def publish(
        self, release: Release, *, channel: str, space: str, feature_size: int, plan: Plan | None = None
    ) -> Publication:
        """Make a release the channel's current one and assign it to all its devices, or begin a rollout of it.

        Raises:
            FleetError: a rollout is under way in this channel.
        """
        ref = release.ref
        self._channel(channel)
        self.check_idle(channel)
        known = self._session.get(ReleaseRow, ref.release_id)
        if known is not None:
            # Earlier versions wrote down the precision that was asked for, whichever the release serves.
            known.space, known.feature_size = space, feature_size
        else:
            self._session.add(
                ReleaseRow(
                    release_id=ref.release_id,
                    name=ref.name,
                    size_bytes=ref.size_bytes,
                    descriptor=release.encoded,
                    space=space,
                    feature_size=feature_size,
                )
            )
            self._session.flush()
        row = PublicationRow(
            channel=channel, release_id=ref.release_id, published_utc=time.time(), staged=plan is not None
        )
        self._session.add(row)
        self._session.flush()
        if plan is not None:
            self._put_rollout(Rollout(row.id, plan))
            return Publication(row.id, channel, release, space, feature_size, announced=False, staged=True)
        of_channel = select(DeviceRow.device).where(DeviceRow.channel == channel, is_there())
        for device in self._session.scalars(of_channel):
            self._session.add(AssignmentRow(publication_id=row.id, device=device))
        return Publication(row.id, channel, release, space, feature_size, announced=False)

    def check_idle(self, channel: str) -> None:
        """Say that something may be published on a channel.

        Raises:
            FleetError: a rollout is under way in it.
        """
        under_way = self.rollout(channel)
        if under_way is not None and under_way[1].open:
            raise FleetError(
                f"a rollout of {under_way[0].ref.name} is under way on channel {channel}",
                hint="Let it end, or stop it: headway fleet rollout halt.",
            )

    def desired(self, devices: Iterable[Device]) -> list[tuple[Device, Desired]]:
        """Return what devices should run: what a rollout under way brought them, else their channel's release.

        A device that rolled the rollout's release back should run what it runs, until the rollout is resumed or
        something else is published. It would take the same release without its wave's deadline for a new
        assignment, and try it again when the next wave begins, and at the end.
        """
        found: list[tuple[Device, Desired]] = []
        by_channel: dict[str, list[Device]] = {}
        for device in devices:
            by_channel.setdefault(device.channel, []).append(device)
        for channel, own in by_channel.items():
            current, under_way = self.current(channel), self.rollout(channel)
            staged: dict[str, Desired] = {}
            gave_up: set[str] = set()
            if under_way is not None and (under_way[1].open or under_way[0] == current):
                publication, rollout = under_way
                newest = rollout.deadline_utc
                for member in self.members(publication.id):
                    if member.state is UpdateState.ROLLED_BACK:
                        gave_up.add(member.device)
                    elif rollout.open:
                        deadline = newest if member.wave == rollout.wave else None
                        staged[member.device] = Desired(
                            release=publication.ref, channel=channel, deadline_utc=deadline
                        )
            usual = None if current is None else Desired(release=current.ref, channel=channel)
            for device in own:
                desired = staged.get(device.device, usual)
                if device.device in gave_up and (runs := self._runs(device)) is not None:
                    desired = Desired(release=runs.ref, channel=channel)
                if desired is not None:
                    found.append((device, desired))
        return found

    def _runs(self, device: Device) -> Publication | None:
        """Return the publication of what a device runs; None where its channel never had that."""
        release_id = device.state.release_id
        found = self._publications(
            (PublicationRow.channel == device.channel) & (PublicationRow.release_id == release_id)
        )
        return found[-1] if found else None

    def spaces_in_use(self, channel: str) -> set[bytes]:
        """Return the feature spaces that a channel's codes are wanted in.

        Those of its release and of the `KEPT_RELEASES` that were it last, since one goes back to these, of a
        rollout under way or to be resumed, and of what its devices run.
        """
        found = {device.state.space for device in self.devices(channel)} - {None}
        current, newest = self.current(channel), self.rollout(channel)
        found |= set() if current is None else {current.space}
        if newest is not None and (newest[1].open or self._may_resume(*newest)):
            found.add(newest[0].space)
        releases: dict[str, str] = {}
        served = (PublicationRow.channel == channel) & PublicationRow.staged.is_(False)
        for publication in reversed(self._publications(served)):
            releases.setdefault(publication.ref.release_id, publication.space)
        found |= {*[*releases.values()][:KEPT_RELEASES]}
        return {bytes.fromhex(space) for space in found if space is not None}

    def _may_resume(self, publication: Publication, rollout: Rollout) -> bool:
        current = self.current(publication.channel)
        return rollout.state is RolloutState.HALTED and (current is None or current.id < publication.id)

    def published(self, channel: str) -> dict[bytes, Publication]:
        """Return the newest publication of a channel in each feature space that one of it had."""
        return {bytes.fromhex(one.space): one for one in self._publications(PublicationRow.channel == channel)}

    def rollout(self, channel: str) -> tuple[Publication, Rollout] | None:
        """Return a channel's newest rollout, under way or ended, and what it brings; None where there was none."""
        row = self._session.scalar(
            select(RolloutRow)
            .join(PublicationRow, PublicationRow.id == RolloutRow.publication_id)
            .where(PublicationRow.channel == channel)
            .order_by(RolloutRow.publication_id.desc())
            .limit(1)
        )
        if row is None:
            return None
        publication = self.publication(row.publication_id)
        assert publication is not None  # a foreign key
        return publication, Rollout(
            row.publication_id,
            msgspec.json.decode(row.plan, type=Plan),
            RolloutState(row.state),
            row.wave,
            row.wave_began_utc,
            row.well_since_utc,
            row.approved,
            row.reason,
            row.version,
        )

    def _put_rollout(self, rollout: Rollout) -> None:
        row = self._session.get(RolloutRow, rollout.publication_id)
        if row is None:
            row = RolloutRow(publication_id=rollout.publication_id)
            self._session.add(row)
        row.plan = msgspec.json.encode(rollout.plan)
        row.state = rollout.state.value
        row.wave, row.wave_began_utc, row.well_since_utc = (
            rollout.wave,
            rollout.wave_began_utc,
            rollout.well_since_utc,
        )
        row.approved, row.reason, row.version = rollout.approved, rollout.reason, rollout.version
        self._session.flush()

    def members(self, publication_id: int) -> list[Member]:
        """Return the devices that a publication's waves have reached, by wave and name; not who is gone."""
        rows = self._session.execute(
            select(AssignmentRow, DeviceRow)
            .join(DeviceRow, DeviceRow.device == AssignmentRow.device)
            .where(AssignmentRow.publication_id == publication_id, is_there())
            .order_by(AssignmentRow.wave, AssignmentRow.device)
        )
        return [_member(assigned, device_of(device)) for assigned, device in rows]

    def set_clock(self, channel: str, stepped_s: float, now_utc: float) -> None:
        """Move the times of a rollout that is under way as the service's clock was moved.

        Args:
            channel: Whose.
            stepped_s: By how much the clock was set.
            now_utc: What it says now. What it said is to come was said by a clock that was ahead.
        """
        found = self.rollout(channel)
        if found is None or not found[1].open:
            return
        rollout = found[1]

        def moved(utc: float) -> float:
            return now_utc if utc + stepped_s > now_utc + CLOCK_STEP_S else utc + stepped_s

        since = rollout.well_since_utc
        after = replace(
            rollout,
            wave_began_utc=moved(rollout.wave_began_utc) if rollout.wave else 0.0,
            well_since_utc=None if since is None else moved(since),
        )
        if after != rollout:
            self._store(after)

    def advance(self, channel: str, now_utc: float) -> tuple[Publication, Decision] | None:
        """Look at a channel's rollout, do what is to be done, and return that; None where nothing has changed.

        Halting and finishing decide what `current` and `desired` say from then on.
        """
        found = self.rollout(channel)
        if found is None or not found[1].open or not found[0].announced or self.broker_away() is not None:
            return None  # nobody can be heard to have taken it, or not
        publication, rollout = found
        devices = {device.device: device for device in self.devices(channel)}
        decision = decide(rollout, publication.ref.release_id, self.members(publication.id), devices, now_utc)
        after = decision.rollout
        if decision.step is Step.NEXT_WAVE:
            after = replace(
                after,
                state=RolloutState.ROLLING,
                wave=after.wave + 1,
                wave_began_utc=now_utc,
                well_since_utc=None,
                version=after.version + 1,
            )
            for device in decision.devices:
                doing = Doing.of(devices[device].state)
                before = None if doing is None else msgspec.json.encode(doing)
                self._session.add(
                    AssignmentRow(publication_id=publication.id, device=device, wave=after.wave, before=before)
                )
        elif decision.step is Step.FINISH:
            self._finish(publication)
        if after == rollout:
            return None
        self._put_rollout(after)
        return publication, replace(decision, rollout=after)

    def _finish(self, publication: Publication) -> None:
        """Make it the channel's current release; devices that no wave has reached get it too."""
        self._session.execute(
            update(PublicationRow).where(PublicationRow.id == publication.id).values(staged=False)
        )
        reached = {member.device for member in self.members(publication.id)}
        for device in self.devices(publication.channel):
            if device.device not in reached:
                self._session.add(AssignmentRow(publication_id=publication.id, device=device.device))

    def halt(self, channel: str, reason: str) -> Rollout:
        """Stop a channel's rollout; its devices are assigned the channel's current release again.

        Raises:
            FleetError: none is under way.
        """
        rollout = self._under_way(channel)
        return self._store(replace(rollout, state=RolloutState.HALTED, reason=reason[:500]))

    def approve(self, channel: str) -> Rollout:
        """Let the next wave of a channel's rollout begin.

        Raises:
            FleetError: none is under way, or it waits for nobody.
        """
        rollout = self._under_way(channel)
        if rollout.state is not RolloutState.AWAITING:
            raise FleetError(
                f"the rollout on {channel} is {rollout.state.value}; it waits for no approval",
                hint="Look at it: headway fleet rollout show.",
            )
        return self._store(replace(rollout, approved=rollout.wave + 1, state=RolloutState.SOAKING))

    def resume(self, channel: str) -> Rollout:
        """Go on with a halted rollout, from the wave that was out, as if its devices had said nothing yet.

        Raises:
            FleetError: there is none, it did not halt, or another release was published since.
        """
        found = self.rollout(channel)
        if found is None or found[1].state is not RolloutState.HALTED:
            raise FleetError(
                f"no rollout has halted on channel {channel}", hint="Look at it: headway fleet rollout show."
            )
        publication, rollout = found
        current = self.current(channel)
        if current is not None and current.id > publication.id:
            raise FleetError(
                f"{current.ref.name} was published since", hint="Publish the bundle again with --waves."
            )
        self._session.execute(
            update(AssignmentRow)
            .where(AssignmentRow.publication_id == publication.id)
            .values(state=None, reason="", updated_utc=None)
        )
        # Its chunks may be off the broker by now.
        self._session.execute(
            update(PublicationRow)
            .where(PublicationRow.id == publication.id)
            .values(announced=False, cleared=False)
        )
        return self._store(
            replace(
                rollout, state=RolloutState.ROLLING, reason="", wave_began_utc=time.time(), well_since_utc=None
            )
        )

    def _under_way(self, channel: str) -> Rollout:
        found = self.rollout(channel)
        if found is None or not found[1].open:
            raise FleetError(
                f"no rollout is under way on channel {channel}",
                hint="Begin one: headway fleet publish BUNDLE --waves 1,10%,100%.",
            )
        return found[1]

    def _store(self, rollout: Rollout) -> Rollout:
        after = replace(rollout, version=rollout.version + 1)
        self._put_rollout(after)
        return after


def _member(row: AssignmentRow, device: Device) -> Member:
    return Member(
        device=row.device,
        wave=row.wave,
        state=None if row.state is None else UpdateState(row.state),
        reason=row.reason,
        online=device.state.online,
        running=device.state.release_id,
        before=None if row.before is None else msgspec.json.decode(row.before, type=Doing),
        now=Doing.of(device.state),
        faults=tuple(device.state.faults),
    )
