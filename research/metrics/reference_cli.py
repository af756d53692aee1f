"""The command ``research-reference``: build reference statistics for FID, KID and their kin, and verify a file of them."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from research.checks import check_whole_number
from research.errors import ConfigError, UserError
from research.picture_files import MOST_PIXELS, limit_pixels

if TYPE_CHECKING:
    from research.metrics.reference import Reference

OK, REFUSED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
_EPILOG = """\
PATH is a directory of images (with those in it), a .zip of images, or an .npz with uint8 pixels [N, H, W, 3]. The file
holds sums of features in float64, the features themselves, and in its metadata what made them: extractor and hash of its
weights, resize filter, number of images and a hash of their content. Interrupted, the same command goes on where it was.
Use it as metrics.fid.reference=FILE. With --verify the file is checked; with a PATH too, also that it was made of those
images."""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, 1 if a file does not verify, 2 if nothing can be done with the arguments, 130 if interrupted."""
    parser = argparse.ArgumentParser(
        prog="research-reference",
        description="Build reference statistics from real images, or verify a file of them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, nargs="?", metavar="PATH", help="the images")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: NAME-FEATURES.safetensors, here")
    parser.add_argument(
        "--features",
        default="emoji-eval",
        metavar="NAME",
        help="a zoo name, a directory or a hub id of a CLIPModel or DINOv2, inception, or efficientnet (default: %(default)s)",
    )
    parser.add_argument("--name", help="what the images are called in records (default: the path's own name)")
    parser.add_argument(
        "--batch-size", type=int, default=64, metavar="N", help="images at a time (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="where the network runs (default: %(default)s)")
    parser.add_argument(
        "--vectors",
        type=int,
        default=10_000,
        metavar="N",
        help="of how many images to keep the features, for KID and its kin; 0 keeps sums only (default: %(default)s)",
    )
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=MOST_PIXELS,
        metavar="N",
        help="a picture with more is refused (default: %(default)s)",
    )
    parser.add_argument("--again", action="store_true", help="replace FILE if it is there")
    parser.add_argument("--verify", type=Path, metavar="FILE", help="check a file instead of building one")
    parser.add_argument("--json", action="store_true", help="print what the file says of itself as JSON")
    args = parser.parse_args(argv)
    try:
        return _verify(args) if args.verify is not None else _build(args)
    except UserError as error:
        print(f"research-reference: {' '.join(str(error).split())}", file=sys.stderr)
        return REFUSED if isinstance(error, _Mismatch) else BAD_INPUT


class _Mismatch(ConfigError):
    """A file that is not what it says."""


def _build(args: argparse.Namespace) -> int:
    if args.path is None:
        raise ConfigError("PATH: is missing; accepted is a directory of images, a .zip or an .npz; or --verify FILE.")
    check_whole_number("--batch-size", args.batch_size, least=1)
    check_whole_number("--vectors", args.vectors, least=0)
    limit_pixels(args.max_pixels, "--max-pixels")
    name = args.name or args.path.resolve().stem
    plain = Path(args.features).name
    out = args.out or Path(f"{name}-{plain}.safetensors")
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out: found {str(out)!r}; accepted is a name that ends in .safetensors.")
    if out.exists() and not args.again:
        raise ConfigError(f"--out: {out} exists; --again builds it anew, --verify {out} checks it.")
    from research.metrics.extractors.find import find_features
    from research.metrics.image_source import open_source

    find_features(args.features, "--features")
    source = open_source(args.path)
    from tqdm import tqdm

    from research.metrics.extractors.load import load_features
    from research.metrics.reference_build import Build
    from research.models.load import resolve_dtype_and_device

    _, device = resolve_dtype_and_device("auto", args.device)
    features = load_features(args.features, device=device, key="--features")
    build = Build(source, features, out, batch_size=args.batch_size, vectors=args.vectors, name=name)
    if before := build.go_on():
        print(f"going on after {before} of {len(source.names)} images", file=sys.stderr)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tqdm(total=len(source.names), initial=before, unit="image", disable=None, file=sys.stderr) as bar:
            reference = build.run(lambda done: bar.update(done - bar.n))
    except KeyboardInterrupt:
        print(
            f"\ninterrupted after {build.done} of {len(source.names)} images; the same command goes on from there",
            file=sys.stderr,
        )
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)
    from research.metrics.reference import read_reference

    for how, count in build.shown.items():
        print(f"note: of {count} image{'s' * (count > 1)}: {how}", file=sys.stderr)
    # as it will be read, from the disk
    _say(read_reference(out, "--out"), out, args.json)
    if reference.num_samples <= features.num_features:
        print(
            f"warning: {reference.num_samples} images for {features.num_features} features: covariance not of full rank",
            file=sys.stderr,
        )
    return OK


def _verify(args: argparse.Namespace) -> int:
    if not args.verify.is_file():
        raise ConfigError(f"--verify: {str(args.verify)!r} does not exist; accepted is a file of research-reference.")
    import torch

    from research.metrics.reference import read_reference

    try:
        reference = read_reference(args.verify, "--verify")
    except ConfigError as error:
        raise _Mismatch(str(error)) from error
    covariance = reference.gaussian.covariance
    dimension = len(reference.feature_sum)
    size = float(covariance.diagonal().abs().max())
    for wrong, what in (
        (reference.num_samples < 2, f"holds {reference.num_samples} images"),
        (covariance.shape != (dimension, dimension), f"has sums of {dimension} and {list(covariance.shape)} features"),
        (not bool(torch.isfinite(covariance).all()), "has sums that are not finite"),
        (not torch.allclose(covariance, covariance.T, atol=1e-9 * size), "has a covariance that is not symmetric"),
        (float(torch.linalg.eigvalsh(covariance)[0]) < -1e-6 * size, "has a covariance with negative variances"),
        (
            reference.features.get("dimension") != dimension,
            f"says {reference.features.get('dimension')} features, has {dimension}",
        ),
    ):
        if wrong:
            raise _Mismatch(f"--verify: {args.verify.name} {what}.")
    if args.path is not None:
        _same_images(args, reference)
    _say(reference, args.verify, args.json)
    return OK


def _same_images(args: argparse.Namespace, reference: Reference) -> None:
    from research.metrics.image_source import content_sha256, open_source

    claimed = reference.data.get("content_sha256")
    if claimed is None:
        raise _Mismatch(
            f"--verify: {args.verify.name} has no hash of its images; it was not built by research-reference."
        )
    source = open_source(args.path)
    found = content_sha256(source)
    if found != claimed:
        raise _Mismatch(
            f"--verify: {args.verify.name} was made of other images than {args.path.name}: {reference.num_samples} with the hash "
            f"{str(claimed)[:12]}, and not {len(source.names)} with {found[:12]}."
        )


def _say(reference: Reference, file: Path, as_json: bool) -> None:
    vectors = 0 if reference.vectors is None else len(reference.vectors)
    shown = {
        "file": file.name,
        "sha256": reference.info["sha256"],
        "num_samples": reference.num_samples,
        "num_vectors": vectors,
        "features": reference.features,
        "data": reference.info.get("data"),
    }
    if as_json:
        print(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    features = reference.features
    preprocess = features.get("preprocess")
    resize = preprocess.get("resample") if isinstance(preprocess, dict) else preprocess
    print(f"{file}: {reference.num_samples} images, {features.get('dimension')} features of {features.get('name')}")
    print(f"  weights {str(features.get('weights_sha256'))[:16]}, layer {features.get('layer')}, resize {resize}")
    print(f"  features kept of {vectors} images, sha256 {str(shown['sha256'])[:16]}")
    data = reference.data
    if "content_sha256" in data:
        print(
            f"  made of {data['name']} ({data['kind']}), content {str(data['content_sha256'])[:16]}, sizes {data['sizes']}"
        )


if __name__ == "__main__":
    sys.exit(main())
