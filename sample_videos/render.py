"""Renders driving clips with exact labels.

python -m sample_videos.render --seed 7 --frames 300 --size 720x1280 --out sample_videos city_drive
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import moderngl
import numpy as np

from . import shaders
from .conditions import LOOKS
from .gpu import MAX_MOVERS, SHADOW_SIZE, Device, set_uniforms
from .scene import SHADOW_DISTANCE, Frame, Scene

NEAR, FAR = 0.25, 600.0  # metres
SHADOW_HALF = 46.0  # half the side of the ground that casts and takes sharp shadows, metres


def render_clip(
    seed: int,
    frames: int,
    size_hw: tuple[int, int],
    fps: float = 30.0,
    *,
    look: str | None = None,
    supersample: int = 2,
    first_frame: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ``frames`` pairs: picture uint8 [H, W, 3] (RGB) and class ids uint8 [H, W].

    The same arguments give the same frames on the same renderer. ``look`` forces one of
    ``conditions.LOOKS``; ``supersample`` 1 or 2 samples a pixel each way; ``first_frame`` skips
    ahead without rendering. Labels are those of the shutter's middle: 0..10 in CamVid's order and
    255 for the car's own bonnet. Raises ValueError for a size, count or rate out of range.
    """
    _check(frames, size_hw, fps, supersample)
    device = Device(size_hw, supersample)
    scene = Scene(device, seed, look)
    try:
        for number in range(first_frame, first_frame + frames):
            yield _render_frame(device, scene, number, fps)
    finally:
        scene.release()
        device.release()


def write_clip(
    out: Path,
    seed: int,
    frames: int,
    size_hw: tuple[int, int],
    fps: float = 30.0,
    *,
    look: str | None = None,
    crf: int = 20,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write ``out``.mp4 (H.264, 4:2:0, bt709) and ``out``_labels.mkv (FFV1, grey, class ids).

    ``out`` is a path without suffix. Both files get their names only once complete.
    ``progress`` is called with (frames done, frames) after each.
    """
    from .video import ClipWriter

    with ClipWriter(out, size_hw, fps, crf) as writer:
        for done, (picture, labels) in enumerate(
            render_clip(seed, frames, size_hw, fps, look=look), 1
        ):
            writer.write(picture, labels)
            if progress is not None:
                progress(done, frames)
    return [writer.picture_path, writer.label_path]


def _check(frames: int, size_hw: tuple[int, int], fps: float, supersample: int) -> None:
    if frames < 0:
        raise ValueError(f"frames must be 0 or more, got {frames}")
    if len(size_hw) != 2 or not all(16 <= n <= 8192 for n in size_hw):
        raise ValueError(f"size_hw must be (height, width) of 16 to 8192 pixels, got {size_hw}")
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    if supersample not in (1, 2):
        raise ValueError(f"supersample must be 1 or 2, got {supersample}")


def _render_frame(
    device: Device, scene: Scene, number: int, fps: float
) -> tuple[np.ndarray, np.ndarray]:
    time = number / fps
    position, axes = scene.camera(time)
    frame = scene.prepare(time)
    clip = projection(scene, device.size_hw) @ view_matrix(axes)
    light = _light_uniforms(scene, position, axes, clip, time)
    set_uniforms(list(device.programs.values()), light)
    _shadow_pass(device, scene, frame, shadow_matrix(scene, position, axes))
    _contact_pass(device, frame)
    _scene_pass(device, scene, frame, clip)
    _lens_pass(device, scene, frame, clip, number, fps, position)
    height, width = device.size_hw
    picture = np.frombuffer(device.final.read(components=3, alignment=1), np.uint8)
    labels = np.frombuffer(
        device.final.read(components=1, attachment=1, alignment=1, dtype="u1"), np.uint8
    )
    picture = np.ascontiguousarray(picture.reshape(height, width, 3)[::-1])
    return picture, np.ascontiguousarray(labels.reshape(height, width)[::-1])


def projection(scene: Scene, size_hw: tuple[int, int]) -> np.ndarray:
    """Perspective matrix [4, 4] for column vectors."""
    focal = 1.0 / np.tan(scene.conditions.field_of_view / 2)
    matrix = np.zeros((4, 4))
    matrix[0, 0], matrix[1, 1] = focal * size_hw[0] / size_hw[1], focal
    matrix[2, 2], matrix[2, 3] = (FAR + NEAR) / (NEAR - FAR), 2 * FAR * NEAR / (NEAR - FAR)
    matrix[3, 2] = -1.0
    return matrix


def view_matrix(axes: np.ndarray) -> np.ndarray:
    """World (relative to the camera) to eye, from the rows right, up, forward."""
    matrix = np.eye(4)
    matrix[:3, :3] = axes * np.array([[1.0], [1.0], [-1.0]])
    return matrix


def _light_uniforms(
    scene: Scene, position: np.ndarray, axes: np.ndarray, clip: np.ndarray, time: float
) -> dict[str, object]:
    c = scene.conditions
    heading = np.arctan2(axes[2, 0], axes[2, 2])
    return {
        "u_clip": clip.T,
        "u_from_clip": np.linalg.inv(clip).T,
        "u_sun_direction": sun_direction(scene),
        "u_sun": c.sun,
        "u_zenith": c.zenith,
        "u_horizon": c.horizon,
        "u_bounce": c.bounce,
        "u_cloud": c.cloud,
        "u_haze": c.haze,
        "u_drift": (0.31 * (scene.plan.seed % 17) + 0.0012 * time, 0.17 * (scene.plan.seed % 13)),
        "u_to_shadow": shadow_matrix(scene, position, axes).T,
        "u_wet": c.wet,
        "u_fill": c.fill,
        "u_lamps": c.lamps,
        "u_path_offset": (float(position[0] % 1000.0), float(position[2] % 1000.0)),
        "u_ground_axis": np.array([np.sin(heading), np.cos(heading), position[1]]),
    }


def sun_direction(scene: Scene) -> np.ndarray:
    """Unit vector towards the sun."""
    c = scene.conditions
    azimuth = c.sun_azimuth + float(scene.path.heading(scene.drive.distance(0.0)))
    level = np.cos(c.sun_elevation)
    return np.array([np.sin(azimuth) * level, np.sin(c.sun_elevation), np.cos(azimuth) * level])


def shadow_matrix(scene: Scene, position: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """World (relative to the camera) to the shadow map, snapped so that texels stay put."""
    towards = sun_direction(scene)
    right = np.cross([0.0, 1.0, 0.0], towards)
    right /= np.linalg.norm(right)
    up = np.cross(towards, right)
    ahead = np.array([axes[2, 0], 0.0, axes[2, 2]])
    centre = position + ahead * (SHADOW_HALF - 10.0)
    texel = 2 * SHADOW_HALF / SHADOW_SIZE
    matrix = np.eye(4)
    for row, axis in enumerate((right, up)):
        snapped = np.floor(centre @ axis / texel) * texel
        matrix[row, :3] = axis / SHADOW_HALF
        matrix[row, 3] = (position @ axis - snapped) / SHADOW_HALF
    matrix[2, :3] = -towards / 130.0
    matrix[2, 3] = (centre - position) @ towards / 130.0
    return matrix


def _shadow_pass(device: Device, scene: Scene, frame: Frame, matrix: np.ndarray) -> None:
    device.shadow_target.clear(depth=1.0)
    if float(scene.conditions.sun.max()) < 0.3:  # too soft to cast a shadow one could see
        return
    ctx = device.context
    device.shadow_target.use()
    ctx.enable_only(moderngl.DEPTH_TEST)
    device.layers.use(0)
    programs = [p for n, p in device.programs.items() if n.startswith("shadow")]
    set_uniforms(programs, {"u_clip": matrix.T})
    for group in ("SHINY", "SOLID", "CUT"):  # the ground casts no shadow
        for index, (model, _) in scene.segments.items():
            if float(np.linalg.norm(frame.offsets[index])) < SHADOW_DISTANCE:
                device.draw("shadow", model, group, frame.offsets[index])
        for model in scene.models.values():
            device.draw("shadow", model, group, None)


def _contact_pass(device: Device, frame: Frame) -> None:
    ctx = device.context
    device.contact_target.use()
    device.contact_target.clear(1.0)
    if not len(frame.footprints):
        return
    ctx.enable_only(moderngl.BLEND)
    ctx.blend_func = moderngl.ZERO, moderngl.SRC_COLOR
    device.footprints.write(np.ascontiguousarray(frame.footprints, dtype="<f4").tobytes())
    device.contact_array.render(moderngl.TRIANGLE_STRIP, instances=len(frame.footprints))


def _scene_pass(device: Device, scene: Scene, frame: Frame, clip: np.ndarray) -> None:
    ctx = device.context
    device.scene.use()
    device.scene.clear(depth=1.0)
    ctx.enable_only(moderngl.DEPTH_TEST)
    device.layers.use(0)
    device.shadow.use(1)
    device.contact.use(2)
    programs = [p for n, p in device.programs.items() if n.startswith("scene")]
    set_uniforms(programs, {"u_clip": clip.T, "u_layers": 0, "u_shadow": 1, "u_contact": 2})
    nearest = sorted(scene.segments, key=lambda i: float(np.linalg.norm(frame.offsets[i])))
    for group in shaders.GROUPS:
        for model in scene.models.values():
            device.draw("scene", model, group, None)
        for index in nearest:
            device.draw("scene", scene.segments[index][0], group, frame.offsets[index])
    device.draw("scene", scene.backdrop, "SOLID", np.zeros(3))
    ctx.depth_func = "<="
    device.sky.render()
    ctx.depth_func = "<"


def _lens_pass(
    device: Device,
    scene: Scene,
    frame: Frame,
    clip: np.ndarray,
    number: int,
    fps: float,
    position: np.ndarray,
) -> None:
    c = scene.conditions
    device.colour.build_mipmaps()
    device.colour.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)
    open_s = c.shutter / max(fps, 30.0)
    before_position, before_axes = scene.camera(number / fps - open_s)
    move = np.eye(4)
    move[:3, 3] = position - before_position
    before = projection(scene, device.size_hw) @ view_matrix(before_axes) @ move
    height, width = device.size_hw
    device.colour.use(0)
    device.label.use(1)
    device.depth.use(2)
    device.layers.use(3)
    device.drops.use(4)
    velocities = np.zeros((MAX_MOVERS, 3))
    velocities[:] = frame.velocities * open_s
    rain_phase = number * 0.377
    set_uniforms([device.programs["lens"]], {
        "u_colour": 0, "u_label": 1, "u_depth": 2, "u_layers": 3, "u_drops": 4,
        "u_from_clip": np.linalg.inv(clip).T, "u_before": before.T, "u_velocity": velocities,
        "u_size": (float(width), float(height)), "u_scale": float(device.scale), "u_frame": number,
        "u_exposure": c.exposure, "u_black": c.black, "u_contrast": c.contrast, "u_balance": c.balance,
        "u_saturation": c.saturation, "u_vignette": c.vignette, "u_noise": c.noise,
        "u_soft": c.softness * height / 480.0, "u_glare": c.glare, "u_rain": c.rain,
        "u_drop_share": 0.35 * c.rain, "u_rain_at": (rain_phase % 1.0, (rain_phase * 2.618) % 1.0),
        "u_bonnet": c.bonnet,
    })  # fmt: skip
    device.context.enable_only(moderngl.NOTHING)
    device.final.use()
    device.lens.render()


def main() -> None:
    """Render one clip from the command line."""
    parser = argparse.ArgumentParser(description="Render a driving clip with exact labels.")
    parser.add_argument("name", help="files are NAME.mp4 and NAME_labels.mkv")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder to write to")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--size", default="720x1280", help="HEIGHTxWIDTH in pixels")
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--look", choices=LOOKS, default=None, help="force the light and weather")
    parser.add_argument("--crf", type=int, default=20, help="H.264 quality, lower is better")
    args = parser.parse_args()
    height, width = (int(n) for n in args.size.lower().split("x"))
    args.out.mkdir(parents=True, exist_ok=True)
    paths = write_clip(
        args.out / args.name,
        args.seed,
        args.frames,
        (height, width),
        args.fps,
        look=args.look,
        crf=args.crf,
    )
    print("\n".join(str(p) for p in paths))


if __name__ == "__main__":
    main()
