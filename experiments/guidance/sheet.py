"""The contact sheet: a row a method, a column a scale, the same prompts and seeds everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from research.report.contact_sheet import font

TILES = (1, 9, 22, 40)  # which of a job's pictures
SIDE, GAP, LABEL, HEAD = 48, 2, 150, 16
INK, PAPER = "#1c1b19", "#ffffff"


def write_sheet(jobs: list[Any], file: Path) -> None:
    """Draw the first group of seeds of each job; ``jobs`` are sorted by method and scale."""
    first = min(job.seed for job in jobs)
    rows: dict[str, list[Any]] = {}
    for job in jobs:
        if job.seed == first:
            rows.setdefault(job.method.name, []).append(job)
    columns = max(len(row) for row in rows.values())
    cell = len(TILES) * (SIDE + GAP) + 8
    sheet = Image.new("RGB", (LABEL + columns * cell, len(rows) * (SIDE + HEAD + 8) + 8), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (name, row) in enumerate(rows.items()):
        top = 4 + place * (SIDE + HEAD + 8)
        draw.text((6, top + HEAD + SIDE // 2 - 8), name, fill=INK, font=font(name, 13))
        for column, job in enumerate(row):
            left = LABEL + column * cell
            text = f"scale {job.scale:g}   FID {job.fid:.1f}"
            draw.text((left, top), text, fill=INK, font=font(text, 11))
            images = job.row.result.images
            for k, tile in enumerate(TILES):
                if tile < len(images):
                    with Image.open(job.row.image_path(images[tile])) as picture:
                        small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
                    sheet.paste(small, (left + k * (SIDE + GAP), top + HEAD))
    sheet.save(file, optimize=True)
