"""Driving scenes rendered by code, with an exact class id for every pixel.

``python -m sample_videos.render --help`` (from the repository's root) renders a clip. Everything
that is seen is generated: no image, model or recording goes in, so the footage is free of rights.
"""
