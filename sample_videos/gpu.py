"""The renderer: an EGL context, its programs and targets, and the passes of one frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import moderngl
import numpy as np

from . import lens, shaders
from .mesh import (
    CUTOUT,
    GLASS,
    LAMP,
    LEAF,
    PAINT,
    VERTEX_FORMAT,
    VERTEX_NAMES,
    WET,
    Mesh,
    quad_indices,
)
from .noise import SIZE
from .rng import stream
from .textures import texture_layers

INSTANCE_FORMAT = "4f 4f 4f 4f 4f/i"
INSTANCE_NAMES = ("in_row0", "in_row1", "in_row2", "in_dye", "in_extra")
SHADOW_SIZE = 1536
CONTACT_SIZE = 512
MAX_MOVERS = 192  # fits the 1024 uniform components that OpenGL 3.3 promises
_GROUP_KINDS = {"SHINY": (GLASS, PAINT, LAMP), "GROUND": (WET,), "CUT": (LEAF, CUTOUT)}


@lru_cache(maxsize=1)
def shared_context() -> moderngl.Context:
    """One off-screen context a process (EGL: a GPU's, or Mesa's software renderer)."""
    settings: Any = {"backend": "egl", "require": 330}  # typed too narrowly by moderngl
    return moderngl.create_standalone_context(**settings)


@dataclass
class Model:
    """A mesh on the GPU: a range of its indices for each shading group."""

    vertices: moderngl.Buffer
    indices: moderngl.Buffer
    ranges: dict[str, tuple[int, int]]  # first index, count
    arrays: dict[str, moderngl.VertexArray]
    instances: moderngl.Buffer | None = None
    instance_count: int = 0

    def release(self) -> None:
        for array in self.arrays.values():
            array.release()
        self.vertices.release()
        self.indices.release()
        if self.instances is not None:
            self.instances.release()


class Device:
    """Programs, textures and targets shared by all clips of one picture size."""

    def __init__(self, size_hw: tuple[int, int], supersample: int) -> None:
        self.context = ctx = shared_context()
        self.size_hw, self.scale = size_hw, supersample
        self.programs = _programs()
        self.layers = _layer_texture()
        self.drops = _drop_texture()
        height, width = size_hw
        big = (width * supersample, height * supersample)
        self.colour = ctx.texture(big, 4, dtype="f2")
        self.colour.repeat_x = self.colour.repeat_y = False
        self.label = ctx.texture(big, 2, dtype="u1")
        self.label.filter = (moderngl.NEAREST, moderngl.NEAREST)
        self.depth = ctx.depth_texture(big)
        self.depth.compare_func = ""
        self.depth.filter = (moderngl.NEAREST, moderngl.NEAREST)
        self.scene = ctx.framebuffer([self.colour, self.label], self.depth)
        self.shadow = ctx.depth_texture((SHADOW_SIZE, SHADOW_SIZE))
        self.shadow.compare_func = "<="
        self.shadow_target = ctx.framebuffer(depth_attachment=self.shadow)
        self.contact = ctx.texture((CONTACT_SIZE, CONTACT_SIZE), 1)
        self.contact.repeat_x = self.contact.repeat_y = False
        self.contact_target = ctx.framebuffer([self.contact])
        self.picture = ctx.renderbuffer((width, height), 4)
        self.labels = ctx.renderbuffer((width, height), 1, dtype="u1")
        self.final = ctx.framebuffer([self.picture, self.labels])
        corners = np.array([(-1, -1), (3, -1), (-1, 3)], dtype="<f4")
        self.triangle = ctx.buffer(corners.tobytes())
        self.sky = ctx.vertex_array(self.programs["sky"], [(self.triangle, "2f", "in_corner")])
        self.lens = ctx.vertex_array(self.programs["lens"], [(self.triangle, "2f", "in_corner")])
        square = np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)], dtype="<f4")
        self.square = ctx.buffer(square.tobytes())
        self.footprints = ctx.buffer(reserve=28 * 512)
        self.contact_array = ctx.vertex_array(
            self.programs["contact"],
            [(self.square, "2f", "in_corner"), (self.footprints, "4f 3f/i", "in_place", "in_size")],
        )

    def upload(self, mesh: Mesh, instances: int = 0) -> Model:
        """Put a mesh on the GPU, with room for ``instances`` copies (0: it is drawn once)."""
        packed = mesh.pack()
        kinds = packed["meta"][::4, 2]
        group = np.zeros(len(kinds), dtype=int)
        for number, name in enumerate(shaders.GROUPS):
            group[np.isin(kinds, _GROUP_KINDS.get(name, ()))] = number
        order = np.argsort(group, kind="stable")
        quads = packed.reshape(-1, 4)[order]
        counts = np.bincount(group, minlength=len(shaders.GROUPS)) * 6
        starts = np.r_[0, np.cumsum(counts)[:-1]]
        ctx = self.context
        vertices = ctx.buffer(quads.tobytes())
        indices = ctx.buffer(quad_indices(len(kinds)).tobytes())
        buffer = ctx.buffer(reserve=80 * instances) if instances else None
        model = Model(vertices, indices, {}, {}, buffer)
        for name, first, count in zip(shaders.GROUPS, starts, counts, strict=True):
            if count:
                model.ranges[name] = (int(first), int(count))
                for stage in ("scene",) if name == "GROUND" else ("scene", "shadow"):
                    model.arrays[f"{stage} {name}"] = self._array(stage, name, model)
        return model

    def _array(self, stage: str, group: str, model: Model) -> moderngl.VertexArray:
        program = self.programs[f"{stage} {group}{' instanced' if model.instances else ''}"]
        content = [_binding(program, model.vertices, VERTEX_FORMAT, VERTEX_NAMES)]
        if model.instances:
            content.append(_binding(program, model.instances, INSTANCE_FORMAT, INSTANCE_NAMES))
        return self.context.vertex_array(program, content, index_buffer=model.indices)

    def draw(self, stage: str, model: Model, group: str, offset: np.ndarray | None) -> None:
        """Draw one shading group of a model, in one place or as its instances."""
        if group not in model.ranges or (model.instances and not model.instance_count):
            return
        first, count = model.ranges[group]
        array = model.arrays[f"{stage} {group}"]
        if model.instances:
            array.render(vertices=count, first=first, instances=model.instance_count)
            return
        set_uniforms([array.program], {"u_offset": np.asarray(offset)})
        array.render(vertices=count, first=first)

    def release(self) -> None:
        """Free what belongs to this picture size."""
        for item in (
            self.sky, self.lens, self.contact_array, self.scene, self.shadow_target, self.contact_target,
            self.final, self.colour, self.label, self.depth, self.shadow, self.contact, self.picture,
            self.labels, self.triangle, self.square, self.footprints,
        ):  # fmt: skip
            item.release()


def set_uniforms(programs: list[moderngl.Program], values: dict[str, object]) -> None:
    """Set uniforms where a program has them; arrays are taken as float32."""
    for program in programs:
        for name, value in values.items():
            if name not in program:
                continue
            member: Any = program[name]
            if isinstance(value, np.ndarray):
                member.write(np.ascontiguousarray(value, dtype="<f4").tobytes())
            else:
                member.value = value


@lru_cache(maxsize=1)
def _programs() -> dict[str, moderngl.Program]:
    ctx = shared_context()
    sources: dict[str, tuple[str, str]] = {
        "sky": (shaders.SKY_VERTEX, shaders.SKY_FRAGMENT),
        "lens": (lens.LENS_VERTEX, lens.LENS_FRAGMENT),
        "contact": (shaders.CONTACT_VERTEX, shaders.CONTACT_FRAGMENT),
    }
    for group in shaders.GROUPS:
        for instanced in (False, True):
            suffix = f"{group}{' instanced' if instanced else ''}"
            sources[f"scene {suffix}"] = shaders.scene_program(group, instanced)
            sources[f"shadow {suffix}"] = shaders.shadow_program(group, instanced)
    return {
        name: ctx.program(vertex_shader=vertex.lstrip(), fragment_shader=fragment.lstrip())
        for name, (vertex, fragment) in sources.items()
    }


@lru_cache(maxsize=1)
def _layer_texture() -> moderngl.TextureArray:
    layers = texture_layers()
    texture = shared_context().texture_array((SIZE, SIZE, len(layers)), 4, layers.tobytes())
    texture.build_mipmaps()
    texture.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)
    return texture


@lru_cache(maxsize=1)
def _drop_texture() -> moderngl.Texture:
    """Water drops on the windscreen: displacement in rg, coverage in b, a rank in a."""
    rng = stream(0, "drops")
    field = np.full((SIZE, SIZE, 4), 0.5)
    field[..., 2] = 0.0
    for _ in range(420):
        radius = rng.uniform(2.0, 9.0) * (1.8 if rng.random() < 0.1 else 1.0)
        cx, cy = rng.uniform(radius, SIZE - radius, 2)
        x0, y0 = int(cx - radius), int(cy - radius)
        x1, y1 = min(int(cx + radius) + 2, SIZE), min(int(cy + radius) + 2, SIZE)
        dx = (np.arange(x0, x1)[None] - cx) / radius
        dy = (np.arange(y0, y1)[:, None] - cy) / (radius * rng.uniform(0.9, 1.2))
        inside = dx**2 + dy**2 < 1
        patch = field[y0:y1, x0:x1]
        bulge = np.sqrt(np.maximum(1 - dx**2 - dy**2, 0))
        values = np.stack(
            np.broadcast_arrays(
                0.5 + 0.5 * dx, 0.5 + 0.5 * dy, np.minimum(1, bulge * 2.5), rng.random()
            ),
            -1,
        )
        patch[inside] = values[inside]
    data = (field * 255 + 0.5).astype(np.uint8)
    return shared_context().texture((SIZE, SIZE), 4, data.tobytes())


def _binding(
    program: moderngl.Program, buffer: moderngl.Buffer, layout: str, names: tuple[str, ...]
) -> tuple:
    """A vertex array's content, with padding in place of what the program doesn't read."""
    sizes = {"f": 4, "f1": 1, "u1": 1}
    per_instance = layout.endswith("/i")
    parts, used = [], []
    for part, name in zip(layout.removesuffix("/i").split(), names, strict=True):
        if name in program:
            parts.append(part)
            used.append(name)
        else:
            parts.append(f"{int(part[0]) * sizes[part[1:]]}x")
    return (buffer, " ".join(parts) + ("/i" if per_instance else ""), *used)
