"""A clip's world on the GPU: street segments ahead of the camera and the instances of a frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .conditions import CameraPose, Conditions, Drive, draw_conditions
from .gpu import MAX_MOVERS, Device, Model
from .mesh import BICYCLIST, Mesh
from .path import Path
from .people import Parts, make_limb, make_wheel, pose_cyclists, pose_pedestrians
from .plan import SEGMENT, Plan
from .street import backdrop, build_segment
from .traffic import Person, Traffic, Vehicle
from .vehicles import BODIES, make_vehicle, vehicle_half_size

VIEW_DISTANCE = 250.0
SHADOW_DISTANCE = 90.0
VEHICLE_KINDS = (*BODIES, "lorry", "bus", "coach")
KEEP_CLASS = -1.0
_ROOM = {"limb": 4000, "wheel": 256}


@dataclass
class Frame:
    """What changes from frame to frame, relative to the camera."""

    offsets: dict[int, np.ndarray]  # segment index to the place of its origin
    velocities: np.ndarray  # [MAX_MOVERS, 3] metres a second, row 0 for what stands still
    footprints: np.ndarray  # [N, 7] for the contact shade


class Scene:
    """The world of one seed. ``release`` frees its GPU memory."""

    def __init__(self, device: Device, seed: int, look: str | None) -> None:
        self.device = device
        self.plan = Plan(seed)
        self.path = Path(seed)
        self.conditions: Conditions = draw_conditions(seed, look)
        section = self.plan.section
        self.drive = Drive(seed, self.conditions, section.lane(1), section.drive_side)
        self.traffic = Traffic(self.plan, self.drive)
        self.segments: dict[int, tuple[Model, np.ndarray]] = {}
        self.models = {
            kind: device.upload(make_vehicle(kind), _ROOM.get(kind, 96)) for kind in VEHICLE_KINDS
        }
        self.models["limb"] = device.upload(make_limb(), _ROOM["limb"])
        self.models["wheel"] = device.upload(make_wheel(), _ROOM["wheel"])
        self.backdrop = device.upload(backdrop(seed))

    def camera(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """World position [3] and the rows right, up, forward [3, 3] of the camera."""
        pose: CameraPose = self.drive.pose(time)
        position = self.path.to_world(np.array([[pose.t, pose.y, pose.s]]))[0]
        heading = float(self.path.heading(pose.s)) + pose.yaw
        slope = float(self.path.height(pose.s + 2.0) - self.path.height(pose.s - 2.0)) / 4.0
        axes = facing_axes(np.array([heading]), np.array([pose.pitch + slope]))[0]
        right, up, forward = axes.T
        c, s = np.cos(pose.roll), np.sin(pose.roll)
        return position, np.stack([c * right + s * up, c * up - s * right, forward])

    def prepare(self, time: float) -> Frame:
        """Bring segments and instances up to ``time`` seconds."""
        position, axes = self.camera(time)
        s = self.drive.distance(time)
        self._stream_segments(s)
        vehicles = self.traffic.vehicles(time)
        people = self.traffic.people(time)
        riders = self.traffic.cyclists(time)
        velocities = np.zeros((MAX_MOVERS, 3))
        prints = [
            *self._place_vehicles(vehicles, position, velocities, axes),
            *self._place_people(people, riders, position, velocities, axes, len(vehicles)),
        ]
        offsets = {index: origin - position for index, (_, origin) in self.segments.items()}
        return Frame(offsets, velocities, np.array(prints, dtype="<f4").reshape(-1, 7)[:512])

    def release(self) -> None:
        for model, _ in self.segments.values():
            model.release()
        for model in self.models.values():
            model.release()
        self.backdrop.release()
        self.segments.clear()

    def _stream_segments(self, s: float) -> None:
        wanted = range(int((s - 12.0) // SEGMENT), int((s + VIEW_DISTANCE) // SEGMENT) + 1)
        for index in [i for i in self.segments if i not in wanted]:
            self.segments.pop(index)[0].release()
        for index in wanted:
            if index not in self.segments:
                mesh, origin = self._bent_segment(index)
                self.segments[index] = (self.device.upload(mesh), origin)

    def _bent_segment(self, index: int) -> tuple[Mesh, np.ndarray]:
        """A segment's mesh bent along the path, relative to the returned world origin."""
        mesh = build_segment(self.plan, index)
        origin = self.path.to_world(np.array([[0.0, 0.0, index * SEGMENT]]))[0]
        street = np.concatenate(mesh.positions).reshape(-1, 3)
        street = street + np.array([0.0, 0.0, index * SEGMENT])
        normals = np.concatenate([n.reshape(-1, 3) for n in mesh.normals])
        bent = Mesh(
            positions=[(self.path.to_world(street) - origin).reshape(-1, 4, 3)],
            normals=[self.path.turn(normals, street[:, 2]).reshape(-1, 4, 3)],
            uvs=mesh.uvs,
            tints=mesh.tints,
            metas=mesh.metas,
        )
        return bent, origin

    def _slope(self, s: np.ndarray) -> np.ndarray:
        return (self.path.height(s + 1.5) - self.path.height(s - 1.5)) / 3.0

    def _place_vehicles(
        self,
        vehicles: list[Vehicle],
        position: np.ndarray,
        velocities: np.ndarray,
        axes: np.ndarray,
    ) -> list[np.ndarray]:
        for kind in VEHICLE_KINDS:
            self.models[kind].instance_count = 0
        if not vehicles:
            return []
        street = np.array([(v.t, v.y, v.s) for v in vehicles])
        yaw = np.array([v.yaw for v in vehicles])
        heading = self.path.heading(street[:, 2])
        turn = facing_axes(heading + yaw, self._slope(street[:, 2]) * np.cos(yaw))
        at = self.path.to_world(street) - position
        speed = np.array([v.speed for v in vehicles])
        ids = np.where(np.arange(len(vehicles)) < MAX_MOVERS - 1, np.arange(len(vehicles)) + 1, 0)
        along = np.stack([np.sin(heading), 0 * heading, np.cos(heading)], axis=1)
        velocities[ids] = along * speed[:, None]
        velocities[0] = 0.0
        rows = np.zeros((len(vehicles), 5, 4), dtype="<f4")
        rows[:, :3, :3], rows[:, :3, 3] = turn, at
        rows[:, 3, :3] = [v.paint for v in vehicles]
        rows[:, 4, 0], rows[:, 4, 1] = KEEP_CLASS, ids
        for kind in {v.kind for v in vehicles}:
            self._fill(kind, rows[[v.kind == kind for v in vehicles]])
        halves = np.array([vehicle_half_size(v.kind) for v in vehicles])
        return footprint_rows(at, heading + yaw, halves, 0.82, axes)

    def _place_people(
        self,
        people: list[Person],
        riders: list[Person],
        position: np.ndarray,
        velocities: np.ndarray,
        axes: np.ndarray,
        used: int,
    ) -> list[np.ndarray]:
        limbs, wheels, prints = [], [], []
        seed = self.plan.seed
        for group, cls in ((people, KEEP_CLASS), (riders, float(BICYCLIST))):
            if not group:
                continue
            street = np.array([(p.t, p.y, p.s) for p in group])
            heading = self.path.heading(street[:, 2])
            facing = heading + np.array([p.yaw for p in group])
            at = self.path.to_world(street) - position
            ids = used + 1 + np.arange(len(group))
            ids = np.where(ids < MAX_MOVERS, ids, 0)
            used += len(group)
            across = np.stack([np.cos(heading), 0 * heading, -np.sin(heading)], axis=1)
            along = np.stack([np.sin(heading), 0 * heading, np.cos(heading)], axis=1)
            pace = np.array([p.velocity for p in group])
            velocities[ids] = across * pace[:, :1] + along * pace[:, 1:]
            velocities[0] = 0.0
            keys = np.array([p.key for p in group])
            phase = np.array([p.phase for p in group])
            if cls == KEEP_CLASS:
                parts = pose_pedestrians(seed, keys, phase, np.array([p.stride for p in group]))
            else:
                parts, wheel_parts = pose_cyclists(seed, keys, phase)
                wheels.append(part_rows(wheel_parts, facing, at, ids, cls))
            limbs.append(part_rows(parts, facing, at, ids, cls))
            halves = np.tile([(0.16, 0.16 if cls == KEEP_CLASS else 0.7)], (len(group), 1))
            prints += footprint_rows(at, facing, halves, 0.5, axes)
        self._fill("limb", np.concatenate(limbs) if limbs else np.zeros((0, 5, 4)))
        self._fill("wheel", np.concatenate(wheels) if wheels else np.zeros((0, 5, 4)))
        return prints

    def _fill(self, name: str, rows: np.ndarray) -> None:
        """Write instances, nearest first where there are more than fit."""
        model = self.models[name]
        assert model.instances is not None
        room = model.instances.size // 80
        if len(rows) > room:
            near = np.argsort((rows[:, :3, 3] ** 2).sum(1), kind="stable")[:room]
            rows = rows[near]
        model.instance_count = len(rows)
        if len(rows):
            model.instances.write(np.ascontiguousarray(rows, dtype="<f4").tobytes())


def facing_axes(heading: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Matrices [N, 3, 3] whose columns are right, up and forward."""
    c, s, cp, sp = np.cos(heading), np.sin(heading), np.cos(pitch), np.sin(pitch)
    right = np.stack([c, 0 * c, -s], axis=1)
    up = np.stack([-s * sp, cp, -c * sp], axis=1)
    forward = np.stack([s * cp, sp, c * cp], axis=1)
    return np.stack([right, up, forward], axis=2)


def part_rows(
    parts: Parts, facing: np.ndarray, at: np.ndarray, ids: np.ndarray, cls: float
) -> np.ndarray:
    """Instance rows [N, 5, 4] of people's parts, placed and turned as their owners."""
    turn = facing_axes(facing, 0 * facing)[parts.owner]
    rows = np.zeros((len(parts.owner), 5, 4))
    rows[:, :3] = turn @ parts.matrices
    rows[:, :3, 3] += at[parts.owner]
    rows[:, 3, :3] = parts.colours
    rows[:, 4, 0] = cls
    rows[:, 4, 1] = ids[parts.owner]
    return rows


def footprint_rows(
    at: np.ndarray, heading: np.ndarray, halves: np.ndarray, strength: float, axes: np.ndarray
) -> list[np.ndarray]:
    """Contact-shade instances: place and turn against the camera's heading, half sizes."""
    camera = float(np.arctan2(axes[2, 0], axes[2, 2]))
    c, s = np.cos(camera), np.sin(camera)
    across = at[:, 0] * c - at[:, 2] * s
    along = at[:, 0] * s + at[:, 2] * c
    turn = heading - camera
    strengths = np.full(len(at), strength)
    return list(
        np.stack(
            [across, along, np.sin(turn), np.cos(turn), halves[:, 0], halves[:, 1], strengths],
            axis=1,
        )
    )
