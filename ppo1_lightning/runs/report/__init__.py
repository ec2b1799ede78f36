"""Reports on finished and unfinished runs: ``python -m ppo1_lightning report outputs/...``.

`runs` reads them, `groups` puts them together by what was swept, `statistics` has the mathematics,
`page` writes one HTML file, `figure` a PNG or SVG for a paper.
"""
