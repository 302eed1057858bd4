"""Which network serves which camera: nobody is left out, loads even out, and then there is peace."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.live.spread import (
    LEAST_GAIN,
    CameraDemand,
    Move,
    SiteLoad,
    loads,
    spread,
    wanted_sites,
)

SITES = st.lists(
    st.builds(
        SiteLoad, st.sampled_from("ABCDEF"), st.none() | st.floats(0.5, 4), st.booleans()
    ),
    max_size=6, unique_by=lambda site: site.name,
)  # fmt: skip
CAMERAS = st.lists(
    st.builds(
        CameraDemand, st.integers(0, 30).map(str), st.none() | st.sampled_from("ABCDEFGH"),
        st.none() | st.floats(0, 2), st.booleans(),
    ),
    max_size=20, unique_by=lambda camera: camera.name,
)  # fmt: skip


def applied(cameras: list[CameraDemand], moves: list[Move]) -> list[CameraDemand]:
    to = {move.camera: move.to for move in moves}
    assert len(to) == len(moves)
    return [replace(camera, site=to.get(camera.name, camera.site)) for camera in cameras]


def settle(sites: list[SiteLoad], cameras: list[CameraDemand]) -> list[CameraDemand]:
    """What becomes of them when every move is carried out."""
    for _ in range(500):
        moves = spread(sites, cameras)
        if not moves:
            return cameras
        cameras = applied(cameras, moves)
    raise AssertionError("there is no end to the moves")


@given(SITES, CAMERAS)
def test_every_camera_has_a_network_that_takes_any_at_once(
    sites: list[SiteLoad], cameras: list[CameraDemand]
) -> None:
    taking = {site.name for site in sites if site.taking}
    after = applied(cameras, spread(sites, cameras))
    assert all(camera.site in taking for camera in after) or not taking
    if not taking:
        assert after == cameras


@given(SITES, CAMERAS)
def test_moves_come_to_an_end_and_no_load_is_left_that_a_move_would_ease(
    sites: list[SiteLoad], cameras: list[CameraDemand]
) -> None:
    cameras = settle(sites, [replace(camera, settled=True) for camera in cameras])
    if not any(site.taking for site in sites):
        return
    left = loads(sites, cameras)
    taking = [site.name for site in sites if site.taking]
    fullest = max(taking, key=lambda name: left[name])
    for camera in cameras:
        for to in taking:
            if camera.site == fullest and to != fullest:
                eased = [replace(c, site=to) if c == camera else c for c in cameras]
                after = loads(sites, eased)
                assert max(after[fullest], after[to]) >= (1 - LEAST_GAIN) * left[fullest] - 1e-6


@given(SITES, CAMERAS, st.integers(0, 5))
def test_only_what_must_go_goes_beyond_the_reliefs_allowed(
    sites: list[SiteLoad], cameras: list[CameraDemand], most_reliefs: int
) -> None:
    taking = {site.name for site in sites if site.taking}
    moved = {move.camera for move in spread(sites, cameras, most_reliefs)}
    for_balance = [c for c in cameras if c.name in moved and c.site in taking]
    assert len(for_balance) <= most_reliefs
    assert all(camera.settled for camera in for_balance)


def test_a_network_twice_as_fast_gets_twice_as_much() -> None:
    sites = [SiteLoad("slow", 1.0), SiteLoad("fast", 2.0)]
    cameras = settle(sites, [CameraDemand(str(number), None, 0.1) for number in range(12)])
    assert sum(camera.site == "fast" for camera in cameras) == 8


def test_a_new_network_is_filled_step_by_step_and_a_going_one_is_emptied_at_once() -> None:
    cameras = [CameraDemand(str(number), "AB"[number % 2], 1.0) for number in range(12)]
    sites = [SiteLoad("A", 10.0), SiteLoad("B", 10.0), SiteLoad("new")]
    moves = spread(sites, cameras)
    assert [move.to for move in moves] == ["new", "new"]
    cameras = settle(sites, cameras)
    assert sorted(loads(sites, cameras).values()) == pytest.approx([0.4, 0.4, 0.4])
    sites[0] = replace(sites[0], taking=False)
    cameras = applied(cameras, spread(sites, cameras, most_reliefs=0))
    assert loads(sites, cameras) == pytest.approx({"A": 0, "B": 0.6, "new": 0.6})


def test_a_camera_that_was_just_moved_stays_for_now() -> None:
    sites = [SiteLoad("A"), SiteLoad("B")]
    cameras = [CameraDemand(str(number), "A", settled=False) for number in range(4)]
    assert spread(sites, cameras) == []


def test_how_many_networks_are_wanted() -> None:
    sites = [SiteLoad("A", 100.0), SiteLoad("B", None)]
    cameras = [CameraDemand(str(number), "A", 10.0) for number in range(17)]
    assert wanted_sites(sites, cameras) == 3  # 170 a second, 80 each
    assert wanted_sites([SiteLoad("A"), SiteLoad("B")], cameras) == 2
    assert wanted_sites([], []) == 1


@pytest.mark.parametrize("make", [lambda: SiteLoad("A", 0.0), lambda: CameraDemand("1", demand=-1)])
def test_what_cannot_be_is_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="must be"):
        make()
