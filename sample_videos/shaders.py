"""GLSL of the scene: one vertex shader for streets and instances, four ways to shade.

Lengths are metres, positions are relative to the camera, light is linear. Colour goes to target 0;
class id and mover index go to target 1 as integers, so labels are never blended.
"""

from __future__ import annotations

_VERTEX = """
#version 330
uniform mat4 u_clip;
uniform vec3 u_offset;
in vec3 in_position; in vec4 in_normal; in vec2 in_uv; in vec4 in_tint; in uvec4 in_meta;
#ifdef INSTANCED
in vec4 in_row0; in vec4 in_row1; in vec4 in_row2; in vec4 in_dye; in vec4 in_extra;
#endif
out vec3 v_position; out vec3 v_normal; out vec2 v_uv; out vec4 v_tint; out float v_street;
flat out uvec4 v_meta; flat out uint v_mover;
void main() {
    vec3 normal = in_normal.xyz * 2.0 - 1.0;
    vec4 tint = in_tint;
    v_meta = in_meta; v_mover = 0u;
#ifdef INSTANCED
    vec4 p = vec4(in_position, 1.0);
    v_position = vec3(dot(in_row0, p), dot(in_row1, p), dot(in_row2, p));
    vec3 c0 = vec3(in_row0.x, in_row1.x, in_row2.x);
    vec3 c1 = vec3(in_row0.y, in_row1.y, in_row2.y);
    vec3 c2 = vec3(in_row0.z, in_row1.z, in_row2.z);
    normal = c0 * normal.x / dot(c0, c0) + c1 * normal.y / dot(c1, c1) + c2 * normal.z / dot(c2, c2);
    if (in_meta.w == 1u) tint.rgb *= in_dye.rgb;
    if (in_extra.x >= 0.0) v_meta.y = uint(in_extra.x);
    v_mover = uint(in_extra.y);
    v_street = in_position.x;
#else
    v_position = in_position + u_offset;
    v_street = 0.0;
#endif
    v_normal = normal; v_uv = in_uv; v_tint = tint;
    gl_Position = u_clip * vec4(v_position, 1.0);
}
"""

_SHADOW_FRAGMENT = """
#version 330
uniform sampler2DArray u_layers;
in vec2 v_uv; flat in uvec4 v_meta;
void main() {
#ifdef CUT
    if (texture(u_layers, vec3(v_uv, float(v_meta.x))).a < 0.4) discard;
#endif
}
"""

_COMMON = """
uniform vec3 u_sun_direction; uniform vec3 u_sun; uniform vec3 u_zenith; uniform vec3 u_horizon;
uniform vec3 u_bounce; uniform float u_cloud; uniform float u_haze; uniform vec2 u_drift;
uniform vec3 u_ground_axis;  // forward x, forward z, camera height
vec3 sky_gradient(vec3 d) {
    float up = max(d.y, 0.0);
    return mix(u_horizon, u_zenith, 1.0 - exp(-3.2 * up));
}
vec3 haze_colour(vec3 d) {
    float toward = max(dot(normalize(vec3(d.x, max(d.y, 0.0), d.z)), u_sun_direction), 0.0);
    return u_horizon * 0.92 + u_sun * 0.05 * toward * toward * toward;
}
"""

_FRAGMENT = (
    """
#version 330
uniform sampler2DArray u_layers;
uniform sampler2DShadow u_shadow;
uniform sampler2D u_contact;
uniform mat4 u_to_shadow; uniform float u_wet; uniform float u_lamps; uniform vec2 u_path_offset;
uniform float u_fill;
in vec3 v_position; in vec3 v_normal; in vec2 v_uv; in vec4 v_tint; in float v_street;
flat in uvec4 v_meta; flat in uint v_mover;
layout(location = 0) out vec4 o_colour;
layout(location = 1) out uvec2 o_label;
"""
    + _COMMON
    + """
float sunlight(vec3 p, vec3 n) {
    vec3 q = (u_to_shadow * vec4(p + n * 0.06, 1.0)).xyz * 0.5 + 0.5;
    vec2 edge = abs(q.xy - 0.5);
    if (max(edge.x, edge.y) > 0.49) return 0.8;
    q.z -= 0.0012;
    const float r = 0.00075;
    float lit = texture(u_shadow, q + vec3(r, r * 0.4, 0)) + texture(u_shadow, q + vec3(-r, -r * 0.4, 0))
        + texture(u_shadow, q + vec3(r * 0.4, -r, 0)) + texture(u_shadow, q + vec3(-r * 0.4, r, 0));
    return lit * 0.25;
}
vec3 mirrored(vec3 d) {  // what a pane or a paint sees: the sky above dim opposite façades
    vec3 sky = mix(sky_gradient(d), vec3(1.1) * dot(u_horizon, vec3(0.33)), u_cloud * 0.6);
    float edge = 0.28 + 0.1 * sin(d.x * 23.0) * sin(d.z * 17.0);
    return mix(u_bounce * 0.45, sky, smoothstep(edge - 0.06, edge + 0.06, d.y));
}
void main() {
    float range = length(v_position);
    vec3 view = v_position / range;
    vec4 texel = texture(u_layers, vec3(v_uv, float(v_meta.x)), -0.4);
#ifdef CUT
    float far_ = smoothstep(12.0, 60.0, range), cut = mix(0.5, 0.3, far_);
    if (v_meta.w == 1u) {  // twigs: by chance, as mipmaps spread them over the whole card
        vec2 cell = floor(gl_FragCoord.xy);
        float chance = fract(sin(dot(cell, vec2(12.9898, 78.233))) * 43758.5453);
        cut = mix(0.45, 0.12 + 0.75 * chance, far_);
    }
    if (texel.a < cut) discard;
#endif
    vec3 base = texel.rgb * v_tint.rgb;
    base *= base;
    vec3 n = normalize(v_normal);
#ifndef GROUND
    if (dot(n, view) > 0.0 && v_meta.z != 5u) n = -n;
#endif
    float open_ = v_tint.a;
    float lit = sunlight(v_position, n);
    float facing = dot(n, u_sun_direction);
#ifdef CUT
    float through = v_meta.z == 5u ? 1.0 : 0.0;
    float direct = mix(max(facing, 0.0), clamp(facing * 0.6 + 0.4, 0.0, 1.0) * 0.62, through);
    direct += through * 0.5 * pow(max(dot(view, u_sun_direction), 0.0), 4.0);
    direct *= open_;
#else
    float direct = max(facing, 0.0);
#endif
#ifdef GROUND
    float mirror_share = 0.0;
    {  // stains, contact shade, water
        vec2 flat_ = v_position.xz + u_path_offset;
        vec4 stains = texture(u_layers, vec3(flat_ * 0.043, 1.0)) - 0.5;
        vec4 stains2 = texture(u_layers, vec3(flat_.yx * 0.011, 1.0)) - 0.5;
        base *= 1.0 + 0.7 * stains.a + 0.55 * stains2.r + 0.3 * stains.g;
        vec2 f = u_ground_axis.xy;
        vec2 place = vec2(v_position.x * f.y - v_position.z * f.x, dot(v_position.xz, f));
        vec2 at = vec2(place.x / 60.0 + 0.5, (place.y + 10.0) / 90.0);
        float contact = texture(u_contact, at).r;
        if (at.y > 1.0 || abs(at.x - 0.5) > 0.5) contact = 1.0;
        open_ *= contact;
        direct *= mix(1.0, contact, 0.4);
        float puddle = smoothstep(0.02, 0.16, stains2.r + 0.35 * stains.g) * u_wet;
        base *= mix(1.0, 0.55, u_wet);
        float grazing = 1.0 - clamp(dot(-view, n), 0.0, 1.0);
        float fresnel = 0.03 + 0.97 * pow(grazing, 5.0);
        mirror_share = v_meta.w == 1u ? 0.0 : fresnel * (0.04 + u_wet * 0.55 + 0.5 * puddle);
    }
#endif
    vec3 ambient = mix(u_bounce, mix(u_horizon, u_zenith, 0.45), n.y * 0.5 + 0.5) * open_ * u_fill;
    vec3 colour = base * (u_sun * direct * lit + ambient);
#ifdef GROUND
    vec3 low = reflect(view, n);
    low.y = max(low.y, 0.02);
    vec3 skylike = mix(mirrored(low), sky_gradient(low), smoothstep(4.0, 60.0, range) * 0.5);
    colour += mirror_share * skylike * open_;
#endif
#ifdef SHINY
    vec3 r = reflect(view, n);
    float grazing = 1.0 - clamp(dot(-view, n), 0.0, 1.0);
    float fresnel = 0.05 + 0.95 * pow(grazing, 5.0);
    float pane = v_meta.z == 1u ? texel.a : 0.0;
    float share = v_meta.z == 1u ? pane * (fresnel + 0.07) : fresnel * 0.75 + 0.02;
    float glint = pow(max(dot(r, u_sun_direction), 0.0), 180.0) * lit;
    if (v_meta.z == 3u) {
        colour = colour * 0.7 + base * u_lamps;
        share *= 0.5;
    }
    colour += mirrored(r) * share * mix(0.6, 1.0, open_);
    colour += u_sun * glint * (v_meta.z == 1u ? pane : 0.8) * 2.0;
#endif
    float fog = 1.0 - exp(-range * u_haze);
    colour = mix(colour, haze_colour(view), fog);
    o_colour = vec4(colour, 1.0);
    o_label = uvec2(v_meta.y, v_mover);
}
"""
)

SKY_VERTEX = """
#version 330
in vec2 in_corner;
uniform mat4 u_from_clip;
out vec3 v_ray;
void main() {
    gl_Position = vec4(in_corner, 0.99999, 1.0);
    vec4 far = u_from_clip * vec4(in_corner, 1.0, 1.0);
    v_ray = far.xyz / far.w;
}
"""

SKY_FRAGMENT = (
    """
#version 330
uniform sampler2DArray u_layers;
in vec3 v_ray;
layout(location = 0) out vec4 o_colour;
layout(location = 1) out uvec2 o_label;
"""
    + _COMMON
    + """
void main() {
    vec3 d = normalize(v_ray);
    vec3 colour = sky_gradient(d);
    vec2 at = d.xz / (max(d.y, 0.0) + 0.16);
    vec4 big = texture(u_layers, vec3(at * 0.07 + u_drift, 1.0)) - 0.5;
    vec4 fine = texture(u_layers, vec3(at * 0.23 + u_drift * 1.6, 1.0)) - 0.5;
    float density = big.r * 3.0 + fine.g * 1.1 + fine.b * 0.25;
    float cover = smoothstep(0.75 - 1.6 * u_cloud, 1.55 - 1.6 * u_cloud, density + 0.25);
    float sunward = max(dot(d, u_sun_direction), 0.0);
    float lightness = 0.62 - 0.5 * u_cloud * clamp(density * 0.5 + 0.3, 0.0, 1.0);
    vec3 cloud = (u_horizon * 0.75 + u_sun * 0.22) * (lightness + 0.6);
    cloud += u_sun * 0.35 * pow(sunward, 6.0);
    colour = mix(colour, cloud, cover * 0.9);
    float clear_ = 1.0 - cover * 0.85;
    colour += u_sun * (0.12 * pow(sunward, 8.0) + 0.7 * pow(sunward, 90.0)) * clear_;
    colour += u_sun * 30.0 * smoothstep(0.9994, 0.9998, sunward) * clear_;
    float fog = exp(-max(d.y, 0.0) * 0.06 / max(u_haze, 0.0004));
    colour = mix(colour, haze_colour(d), fog * 0.85);
    o_colour = vec4(colour, 1.0);
    o_label = uvec2(0u, 0u);
}
"""
)

CONTACT_VERTEX = """
#version 330
in vec2 in_corner;
in vec4 in_place;  // across, along, sine and cosine of the heading against the camera's
in vec3 in_size;   // half width, half length, strength
out vec2 v_at; flat out vec3 v_size;
void main() {
    vec2 p = in_corner * (in_size.xy + 0.55);
    v_at = p; v_size = in_size;
    vec2 q = in_place.xy + vec2(p.x * in_place.w + p.y * in_place.z, -p.x * in_place.z + p.y * in_place.w);
    gl_Position = vec4(q.x / 30.0, (q.y + 10.0) / 45.0 - 1.0, 0.0, 1.0);
}
"""

CONTACT_FRAGMENT = """
#version 330
in vec2 v_at; flat in vec3 v_size;
out float o_open;
void main() {
    vec2 d = abs(v_at) - v_size.xy + 0.12;
    float away = length(max(d, 0.0)) + min(max(d.x, d.y), 0.0);
    o_open = 1.0 - v_size.z * (1.0 - smoothstep(-0.35, 0.6, away));
}
"""

GROUPS = ("SHINY", "SOLID", "GROUND", "CUT")  # drawn in this order


def scene_program(group: str, instanced: bool) -> tuple[str, str]:
    """Vertex and fragment source that shade one of :data:`GROUPS`."""
    defines = [group] + (["INSTANCED"] if instanced else [])
    return _define(_VERTEX, defines), _define(_FRAGMENT, defines)


def shadow_program(group: str, instanced: bool) -> tuple[str, str]:
    """As :func:`scene_program` for the depth seen from the sun."""
    defines = [group] + (["INSTANCED"] if instanced else [])
    return _define(_VERTEX, defines), _define(_SHADOW_FRAGMENT, defines)


def _define(source: str, names: list[str]) -> str:
    head, rest = source.lstrip().split("\n", 1)
    return "\n".join([head, *(f"#define {name}" for name in names), rest])
