"""GLSL of the camera: motion blur, softness, drops, rain, exposure, tone, vignette, noise.

Runs once an output pixel over the supersampled scene; the label is the commonest of the pixel's
samples at the shutter's middle, never a blend.
"""

from __future__ import annotations

LENS_VERTEX = """
#version 330
in vec2 in_corner;
out vec2 v_uv;
void main() { v_uv = in_corner * 0.5 + 0.5; gl_Position = vec4(in_corner, 0.0, 1.0); }
"""

LENS_FRAGMENT = """
#version 330
uniform sampler2D u_colour; uniform usampler2D u_label; uniform sampler2D u_depth;
uniform sampler2DArray u_layers; uniform sampler2D u_drops;
uniform mat4 u_from_clip; uniform mat4 u_before;  // clip to now, now to the shutter's opening
uniform vec3 u_velocity[192];  // metres a shutter time, by mover
uniform vec2 u_size; uniform float u_scale; uniform uint u_frame;
uniform float u_exposure; uniform float u_black; uniform float u_contrast;
uniform vec3 u_balance; uniform float u_saturation;
uniform float u_vignette; uniform float u_noise; uniform float u_soft; uniform float u_glare;
uniform float u_rain; uniform float u_drop_share; uniform vec2 u_rain_at; uniform float u_bonnet;
in vec2 v_uv;
layout(location = 0) out vec4 o_colour;
layout(location = 1) out uint o_label;

uint hash(uint x) {
    x ^= x >> 16; x *= 0x7feb352du; x ^= x >> 15; x *= 0x846ca68bu; x ^= x >> 16;
    return x;
}
float uniform01(uint x) { return float(hash(x) >> 8) / 16777216.0; }
float gaussish(uint x) { return (uniform01(x) + uniform01(x + 77u) + uniform01(x + 177u)) * 2.0 - 3.0; }

vec2 shutter_motion(vec2 uv) {
    ivec2 at = ivec2(uv * u_size * u_scale);
    float depth = texelFetch(u_depth, at, 0).r;
    uint mover = texelFetch(u_label, at, 0).y;
    vec4 p = u_from_clip * vec4(uv * 2.0 - 1.0, depth * 2.0 - 1.0, 1.0);
    vec4 q = u_before * vec4(p.xyz / p.w - u_velocity[mover], 1.0);
    vec2 motion = uv - (q.xy / q.w * 0.5 + 0.5);
    float limit = 0.06 / max(length(motion), 1e-6);
    return motion * min(1.0, limit);
}

void main() {
    vec2 uv = v_uv;
    vec4 drop = texture(u_drops, v_uv * vec2(u_size.x / u_size.y, 1.0));
    float wet = drop.b * step(1.0 - u_drop_share, drop.a) ;
    uv = clamp(uv + (drop.rg - 0.5) * 0.09 * wet, 0.002, 0.998);
    vec2 motion = shutter_motion(uv);
    vec2 pixel = 1.0 / u_size;
    vec2 soft = pixel * (u_soft + 2.5 * wet);
    uvec2 here = uvec2(gl_FragCoord.xy);
    float jitter = uniform01(here.x * 9277u + here.y * 26699u + u_frame * 101u) - 0.5;
    vec3 colour = vec3(0.0);
    for (int k = 0; k < 6; k++) {
        float t = (float(k) + 0.5 + jitter * 0.8) / 6.0 - 0.5;
        vec2 side = vec2((k & 1) == 0 ? 0.5 : -0.5, (k % 3) - 1.0);
        colour += min(texture(u_colour, uv + motion * t + side * soft).rgb, vec3(12.0));
    }
    colour /= 6.0;
    vec3 veil = textureLod(u_colour, uv, 5.0).rgb * 0.6 + textureLod(u_colour, uv, 7.0).rgb * 0.4;
    colour = mix(colour, veil, u_glare);

    // rain between the street and the windscreen
    vec2 fall = vec2(v_uv.x * 2.3, v_uv.y * 0.16) + u_rain_at;
    float streak = smoothstep(0.66, 0.82, texture(u_layers, vec3(fall, 1.0)).b) * u_rain;
    colour = mix(colour, veil * 1.15, streak * 0.35);

    vec2 off = (v_uv - 0.5) * vec2(u_size.x / u_size.y, 1.0);
    float ridge = u_bonnet * (1.0 - 0.45 * off.x * off.x) - 0.012 * sin(off.x * 9.0);
    bool bonnet = u_bonnet > 0.0 && v_uv.y < ridge;
    if (bonnet) {
        float up = (ridge - v_uv.y) / max(u_bonnet, 1e-3);
        vec3 sky = textureLod(u_colour, vec2(1.0 - v_uv.x, clamp(0.98 - up * 0.4, 0.0, 1.0)), 3.0).rgb;
        colour = veil * 0.05 + sky * (0.05 + 0.3 * exp(-up * 6.0));
    }

    colour *= u_exposure * u_balance * (1.0 - u_vignette * dot(off, off));
    colour = max(colour - u_black, 0.0) * (1.0 + 0.5 * u_black);
    float grey = dot(colour, vec3(0.25, 0.65, 0.1));
    colour = max(mix(vec3(grey), colour, u_saturation), 0.0);
    vec3 knee = vec3(0.72);
    vec3 over = max(colour - knee, 0.0);
    colour = min(colour, knee) + (1.0 - knee) * (1.0 - exp(-over / (1.0 - knee)));
    colour = pow(colour, vec3(1.0 / 2.2));
    colour = mix(colour, colour * colour * (3.0 - 2.0 * colour), u_contrast);

    uint seed = here.x * 1973u + here.y * 92779u + u_frame * 26699u;
    uint coarse = (here.x / 2u) * 1973u + (here.y / 2u) * 92779u + u_frame * 7919u;
    float light = 0.55 + 0.8 * sqrt(clamp(1.0 - dot(colour, vec3(0.33)), 0.0, 1.0));
    vec3 speckle = vec3(gaussish(coarse + 1u), gaussish(coarse + 2u), gaussish(coarse + 3u));
    vec3 grain = vec3(gaussish(seed)) * 0.8 + speckle * 0.55;
    colour += grain * u_noise * light;
    o_colour = vec4(clamp(colour, 0.0, 1.0), 1.0);

    int n = int(u_scale + 0.5);
    ivec2 at = ivec2(gl_FragCoord.xy) * n;
    uint a = texelFetch(u_label, at, 0).x;
    uint b = texelFetch(u_label, at + ivec2(n - 1, n - 1), 0).x;
    uint c = texelFetch(u_label, at + ivec2(n - 1, 0), 0).x;
    uint d = texelFetch(u_label, at + ivec2(0, n - 1), 0).x;
    o_label = (a == b || a == c || a == d) ? a : ((b == c || b == d) ? b : (c == d ? c : a));
    if (bonnet) o_label = 255u;
}
"""
