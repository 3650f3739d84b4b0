"""The loader of image files: order, shares, resume, repeated augmentation, and what is drawn."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fogzo_repro.config import UserError
from fogzo_repro.data.augmentation import (
    UnreadableImage,
    drawn_from,
    evaluation_view,
    normalize,
    read_image,
    read_pixels,
    training_view,
)
from fogzo_repro.data.imagenet import CLASS_LISTS, Files, build, read_class_list
from fogzo_repro.data.mixing import Mix, MixedBatches
from fogzo_repro.data.order import EpochOrder, across_epochs
from fogzo_repro.data.photographs import (
    PhotographBatches,
    PhotographLoader,
    Photographs,
    Sample,
    all_batches,
    samples_of,
)
from tests.mixed import mixer_of
from tests.random_directions import stream

IMAGENET = 1_281_167
DEIT: Any = SimpleNamespace(
    augmentation="timm", interpolation="bicubic", test_resize=256, color_jitter=0.3,
    rand_augment="rand-m9-mstd0.5-inc1", erase_probability=0.25,
)  # fmt: skip

RESNET: Any = SimpleNamespace(augmentation="torchvision", interpolation="bilinear", test_resize=256)

MIX = mixer_of(3, mixup=0.8, cutmix=1.0, probability=1.0, share=0.5, smoothing=0.1)


def order(**more: Any) -> EpochOrder:
    values: dict[str, Any] = {
        "images": IMAGENET, "batch_size": 1024, "repeats": 3, "sampler_ranks": 4, "drop_last": True,
        "world_size": 1,
    }  # fmt: skip
    return EpochOrder(**{**values, **more})


# --- the order of an epoch -----------------------------------------------------------------------


def test_epochs_have_as_many_steps_as_upstream() -> None:
    assert order().steps == 1251
    assert order(repeats=1, batch_size=256, drop_last=False).steps == 5005
    assert order(repeats=1, batch_size=256).steps == 5004


def test_a_plain_epoch_holds_every_image_once() -> None:
    images, copies = order(repeats=1, batch_size=256, drop_last=False).draw(stream())
    assert torch.equal(images.sort().values, torch.arange(IMAGENET))
    assert not copies.any()


@pytest.mark.slow
def test_repeated_augmentation_is_timms_sampler_on_four_ranks() -> None:
    from timm.data.distributed_sampler import RepeatAugSampler

    images, copies = order().draw(stream(0))
    batches = images.view(1251, 4, 256)
    for rank in range(4):
        sampler = RepeatAugSampler(range(IMAGENET), num_replicas=4, rank=rank)  # its seed is 0
        theirs = torch.tensor(list(sampler))[: 1251 * 256].view(1251, 256)
        assert torch.equal(batches[:, rank], theirs)
    assert len(images) == 1_281_024
    assert len(torch.unique(images * 3 + copies)) == len(images)  # no copy comes twice


def test_an_epoch_with_repeats_touches_a_third_of_the_images() -> None:
    images, _ = order().draw(stream())
    assert len(torch.unique(images)) == 427_008


@pytest.mark.parametrize("repeats", [1, 3], ids=["plain", "repeated"])
def test_four_ranks_share_the_batches_of_one(repeats: int) -> None:
    start = order(repeats=repeats).steps - 3
    whole = list(samples_of(order(repeats=repeats), 0, stream(), start))
    shared = order(repeats=repeats, world_size=4)
    ranks = [samples_of(shared, rank, stream(), start) for rank in range(4)]
    assert len(whole) == 3
    for batch, *shares in zip(whole, *ranks, strict=True):
        assert sorted(batch) == sorted(sample for share in shares for sample in share)
        assert {len(share) for share in shares} == {256}


def test_a_later_start_is_the_rest_of_the_epoch() -> None:
    small = order(images=4000, batch_size=64, drop_last=True)
    assert list(samples_of(small, 0, stream(), 17)) == list(samples_of(small, 0, stream(), 0))[17:]


@pytest.mark.parametrize("repeats", [1, 3], ids=["plain", "repeated"])
def test_all_of_imagenet_goes_on_where_an_epoch_was_left(repeats: int) -> None:
    of_all = order(repeats=repeats, world_size=4)
    late = of_all.steps - 5
    earlier, later = (list(samples_of(of_all, 2, stream(), k)) for k in (late - 2, late))
    assert len(later) == 5 and earlier[2:] == later


def test_the_last_batch_is_kept_and_cut_to_a_multiple_of_the_ranks() -> None:
    given = {"images": 23, "batch_size": 8, "repeats": 1, "drop_last": False}
    assert [len(b) for b in samples_of(order(**given), 0, stream(), 0)] == [8, 8, 7]
    half = samples_of(order(**given, world_size=2), 1, stream(), 0)
    assert [len(b) for b in half] == [4, 4, 3]


def test_evaluation_covers_every_image_once() -> None:
    seen = [s.image for rank in range(3) for b in all_batches(100, 7, rank, 3) for s in b]
    assert sorted(seen) == list(range(100))


# --- what is drawn for an image ------------------------------------------------------------------


def picture(size: tuple[int, int] = (90, 70), mode: str = "RGB") -> Any:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


@pytest.fixture(scope="module")
def photographs(data_dir: Path) -> list[Path]:
    """Real photographs of ImageNet; grey ones are among them."""
    found = sorted((data_dir / "imagenet").glob("*/*/*.*"))[::5]
    if not found:
        pytest.skip(f"no sample of ImageNet under {data_dir}")
    return found


@pytest.mark.parametrize("seed", range(4), ids=lambda s: f"seed{s}")
def test_deits_augmentation_is_timms_own_with_the_same_seed(seed: int) -> None:
    from timm.data import create_transform

    theirs = create_transform(
        32, is_training=True, color_jitter=0.3, auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic", re_prob=1.0, re_mode="pixel", re_count=1,
    )  # fmt: skip
    theirs.transforms[-1].device = "cpu"
    always = SimpleNamespace(**{**vars(DEIT), "erase_probability": 1.0})
    image = picture()
    with drawn_from(seed):
        ours = training_view(always, 32)(np.asarray(image))
    with drawn_from(seed):
        wanted = theirs(image)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


def test_the_resnet_view_is_torchvisions_pipeline_with_the_same_seed() -> None:
    from torchvision import transforms

    theirs = transforms.Compose(
        [
            transforms.RandomResizedCrop(32),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    image = picture()
    for seed in range(4):
        with drawn_from(seed):
            ours = normalize(training_view(RESNET, 32)(np.asarray(image)))
        with drawn_from(seed):
            torch.testing.assert_close(ours, theirs(image), rtol=0, atol=1e-5)


def test_the_evaluation_view_is_timms() -> None:
    from timm.data import create_transform

    theirs = create_transform(224, is_training=False, interpolation="bicubic", crop_pct=0.875)
    image = picture((300, 260))
    ours = normalize(evaluation_view(DEIT, 224)(np.asarray(image)))
    torch.testing.assert_close(ours, theirs(image), rtol=0, atol=1e-5)


def test_drawing_leaves_the_global_generators_alone() -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with drawn_from(7):
        inside = random.random(), np.random.rand(), torch.rand(1).item()
    after = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert after == (random.random(), np.random.rand(), torch.rand(1).item())
    with drawn_from(7):
        assert inside == (random.random(), np.random.rand(), torch.rand(1).item())


# --- files ---------------------------------------------------------------------------------------


def tree(folder: Path, classes: int = 3, images: int = 4) -> Path:
    for split in ("train", "val"):
        for c in range(classes):
            where = folder / "imagenet" / split / f"n{c:08d}"
            where.mkdir(parents=True)
            for i in range(images):
                picture((40 + i, 30 + c)).save(where / f"{split}_{i}.JPEG")
    return folder


def batches_of(folder: Path, workers: int, skip: bool = False) -> PhotographBatches:
    index = build(folder, None, True)
    photographs = Photographs(index.train, training_view(DEIT, 32), skip)
    loader = PhotographLoader(photographs, workers, torch.device("cpu"))
    return PhotographBatches(loader, order(images=12, batch_size=4, sampler_ranks=2), 0)


def test_workers_do_not_change_a_batch(tmp_path: Path) -> None:
    tree(tmp_path)
    one, two = (list(batches_of(tmp_path, w).epoch(stream())) for w in (0, 2))
    assert len(one) == 3
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels)


def test_a_loader_gives_a_second_epoch_and_a_later_start(tmp_path: Path) -> None:
    batches = batches_of(tree(tmp_path), workers=1)
    first = list(batches.epoch(stream(1)))
    second = list(batches.epoch(stream(2)))
    again = list(batches.epoch(stream(1), start=1))
    assert not torch.equal(first[0].pixels, second[0].pixels)
    assert [len(first), len(again)] == [3, 2]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(first[1:], again, strict=True))


def test_a_loader_ends_with_the_stream_that_was_asked_of_it(tmp_path: Path) -> None:
    """Without a collection of garbage: its workers hold the lock of the run's folder."""
    data = batches_of(tree(tmp_path), workers=0)
    batches = across_epochs(data, stream, range(9))
    next(batches)
    loader = weakref.ref(data.loader)
    gc.collect()
    gc.disable()
    try:
        del data, batches
        assert loader() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("mix", [None, MIX], ids=["plain", "mixed"])
@pytest.mark.parametrize("workers", [0, 2], ids=["here", "workers"])
def test_batches_across_epochs_are_those_of_each_from_any_step_to_any(
    tmp_path: Path, workers: int, mix: Mix | None
) -> None:
    """Epochs of 3 batches, the last of 2 images."""
    index = build(tree(tmp_path), None, True)
    loader = PhotographLoader(
        Photographs(index.train, training_view(DEIT, 32), False), workers, torch.device("cpu")
    )
    given = {"images": 10, "batch_size": 4, "repeats": 1, "drop_last": False}
    data: Any = PhotographBatches(loader, order(**given), 0)
    if mix is not None:
        data = MixedBatches(data, mix, lambda p: p.float())
    each = [batch for seed in range(3) for batch in data.epoch(stream(seed))]
    for steps in (range(9), range(2, 3), range(2, 7), range(3, 4), range(4, 9), range(5, 5)):
        found = list(across_epochs(data, stream, steps))
        assert len(found) == len(steps)
        for a, b in zip(found, each[steps.start : steps.stop], strict=True):
            assert all(map(torch.equal, a, b))


def test_workers_are_asked_for_an_epoch_when_they_are_free_and_for_nothing_after_the_last_step(
    tmp_path: Path,
) -> None:
    """Two workers have two batches each at a time; epochs of 3 batches."""
    drawn: list[int] = []

    def drawing(epoch: int) -> torch.Generator:
        drawn.append(epoch)
        return stream(epoch)

    data = batches_of(tree(tmp_path), workers=2)
    assert data.order.steps == 3
    batches = data.across_epochs(drawing, range(7))
    assert drawn == []
    seen = [list(drawn) for _ in batches]
    assert seen == [[0, 1], [0, 1], [0, 1, 2], *4 * [[0, 1, 2]]]
    drawn.clear()
    assert len(list(data.across_epochs(drawing, range(1, 6)))) == 5 and drawn == [0, 1]


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGB"], ids=str)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.png" if mode == "P" else "x.jpeg")
    picture(mode=mode).save(path)
    assert read_image(path).mode == "RGB"
    assert np.array_equal(read_pixels(path), np.asarray(read_image(path)))


def test_the_fast_decoder_gives_pillows_pixels(photographs: list[Path]) -> None:
    for path in photographs:
        assert np.array_equal(read_pixels(path), np.asarray(read_image(path))), path


@pytest.mark.slow
def test_photographs_are_augmented_as_the_libraries_do(photographs: list[Path]) -> None:
    from timm.data import create_transform
    from torchvision.transforms import v2

    theirs = {
        "torchvision": v2.Compose(
            [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        ),
        "timm": create_transform(
            224, is_training=True, color_jitter=0.3, auto_augment="rand-m9-mstd0.5-inc1",
            interpolation="bicubic", use_prefetcher=True,
        ),
    }  # fmt: skip
    plain = SimpleNamespace(**{**vars(DEIT), "erase_probability": 0.0})
    for recipe in (RESNET, plain):
        view = training_view(recipe, 224)
        for seed, path in enumerate(photographs):
            with drawn_from(seed):
                ours = view(read_pixels(path))
            with drawn_from(seed):
                wanted = torch.as_tensor(theirs[recipe.augmentation](read_image(path)))
            assert torch.equal(ours, wanted), path


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999], ids=str)
def test_a_truncated_jpeg_is_no_image_for_the_fast_decoder_either(
    tmp_path: Path, kept: float
) -> None:
    path = tmp_path / "x.jpeg"
    picture((200, 160)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UnreadableImage, match=r"x\.jpeg"):
        read_pixels(path)


def test_sixteen_bits_of_grey_are_scaled_to_eight(tmp_path: Path) -> None:
    path = tmp_path / "ramp.JPEG"  # 256 levels over the whole range
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257).save(path, "PNG")
    found = np.asarray(read_image(path))
    assert np.array_equal(found, np.arange(256).reshape(16, 16, 1).repeat(3, axis=2))


@pytest.mark.parametrize("dtype", [np.int32, np.float32], ids=["I", "F"])
def test_grey_without_a_known_range_is_named_not_clipped(tmp_path: Path, dtype: Any) -> None:
    path = tmp_path / "wide.tiff"
    Image.fromarray(np.full((8, 8), 70_000, dtype)).save(path)
    with pytest.raises(UnreadableImage, match=r"wide\.tiff: mode [IF] has no largest value"):
        read_image(path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def too_large(path: Path) -> None:
    """Have too many pixels for Pillow, as one of 182 megapixels has without this test's limit."""
    picture((400, 300)).save(path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [(truncated, "truncated"), (too_large, "exceeds limit")],
    ids=["cut", "huge"],
)
def test_an_unreadable_image_is_named_with_the_remedy_and_skipped_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, said: str
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    damage(tree(tmp_path) / "imagenet/train/n00000001/train_2.JPEG")
    with pytest.raises(UserError, match=rf"(?i)train_2\.JPEG.*{said}.*on_bad_image=skip"):
        list(batches_of(tmp_path, 0).epoch(stream()))
    batches = batches_of(tmp_path, 0, skip=True)
    assert [len(b.labels) for b in batches.epoch(stream())] == [4, 4, 4]
    assert len(batches.loader.skipped) == 1


@pytest.mark.parametrize(
    "name", ["größe_1.JPEG", "名前.png", os.fsdecode(b"caf\xe9.jpg")], ids=ascii
)
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = tree(tmp_path) / "imagenet/train/n00000001"
    (folder / "train_2.JPEG").rename(folder / name)
    index = build(tmp_path, None, True)
    at = [index.train.path(i) for i in range(len(index.train.names))].index(folder / name)
    loader = batches_of(tmp_path, 0).loader
    (batch,) = loader.load([[Sample(at, 0)]])
    assert batch.labels.tolist() == [1]
    (folder / name).write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        list(loader.load([[Sample(at, 0)]]))
    str(caught.value).encode()  # can be printed and logged


def test_hidden_files_are_no_images_and_links_to_folders_are_classes(tmp_path: Path) -> None:
    train = tree(tmp_path) / "imagenet/train"
    before = build(tmp_path, None, True)
    (train / "n00000001/._train_2.JPEG").write_bytes(b"left by a desktop")
    (train / ".n00000007").mkdir()
    (train / "n00000002").rename(tmp_path / "elsewhere")
    (train / "n00000002").symlink_to(tmp_path / "elsewhere")
    after = build(tmp_path, None, True)
    assert after.train.names.tolist() == before.train.names.tolist()


def test_a_list_of_classes_may_have_a_mark_of_its_encoding_and_is_in_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("n00000002\nn00000001\n", "utf-8-sig")
    assert read_class_list(str(path)) == ["n00000001", "n00000002"]
    path.write_text("n00000001\n", "utf-16")
    with pytest.raises(UserError, match=r"classes\.txt is not a text in UTF-8"):
        read_class_list(str(path))


def test_cmcs_list_names_a_hundred_classes() -> None:
    classes = read_class_list("imagenet100")
    assert len(classes) == 100 and classes[0] == "n01558993"
    text = (CLASS_LISTS / "imagenet100.txt").read_bytes()  # CMC's own file, in its order
    assert hashlib.sha256(text).hexdigest().startswith("79f3f1552ccc478c")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ((None, False), "has 3 classes, ImageNet-1K has 1000"),
        (("imagenet100", False), "100 of 100 classes have no images"),
        (("imagenet100", True), "has none of the 100 classes of dataset.classes"),
        (("nothing", True), "neither a file nor one of: imagenet100"),
    ],
    ids=["partial", "list-incomplete", "list-empty", "no-list"],
)
def test_a_wrong_tree_or_list_is_one_clear_line(tmp_path: Path, config: Any, message: str) -> None:
    tree(tmp_path, images=1)
    with pytest.raises(UserError, match=message):
        build(tmp_path, *config)


def test_a_class_that_is_not_whole_is_refused_unless_a_part_is_asked_for(tmp_path: Path) -> None:
    tree(tmp_path, images=50)
    (tmp_path / "list.txt").write_text("n00000000\nn00000002\n")
    chosen = str(tmp_path / "list.txt"), False
    with pytest.raises(
        UserError, match=r"2 of 2 classes of train .* 732 to 1,300 .*with 50; .*part"
    ):
        build(tmp_path, *chosen)
    for wnid in ("n00000000", "n00000002"):
        folder = tmp_path / "imagenet" / "train" / wnid
        for i in range(732):
            (folder / f"{i}.jpeg").touch()
    assert len(build(tmp_path, *chosen).train.names) == 2 * 782
    (tmp_path / "imagenet" / "val" / "n00000002" / "val_3.JPEG").unlink()
    with pytest.raises(UserError, match=r"1 of 2 classes of val .* the 50 .* n00000002 with 49"):
        build(tmp_path, *chosen)


def test_a_missing_tree_names_the_command_that_checks_one(tmp_path: Path) -> None:
    folder = tmp_path / "my data"
    with pytest.raises(UserError, match=rf"prepare_imagenet\.py --root '{folder}/imagenet'"):
        build(folder, None, True)


def test_a_class_list_takes_a_subset_and_changes_the_fingerprint(tmp_path: Path) -> None:
    tree(tmp_path)
    (tmp_path / "two.txt").write_text("n00000002\nn00000000\n")
    whole = build(tmp_path, None, True)
    part = build(tmp_path, str(tmp_path / "two.txt"), True)
    assert part.classes == ["n00000000", "n00000002"]
    assert part.train.labels.tolist() == [0] * 4 + [1] * 4
    assert part.fingerprint != whole.fingerprint


def test_an_index_of_all_of_imagenet_is_compact() -> None:
    names = np.array([f"n{i % 1000:08d}/x_{i}.JPEG" for i in range(IMAGENET)], dtype=np.bytes_)
    files = Files(Path("t"), names, np.arange(IMAGENET) % 1000)
    assert files.path(IMAGENET - 1) == Path("t/n00000166/x_1281166.JPEG")
    assert names.nbytes < 40 * 2**20


# --- workers that are lost ------------------------------------------------------------------------


def loader_of(tmp_path: Path) -> PhotographLoader:
    """Two workers on four small images."""
    for i in range(4):
        Image.new("RGB", (40, 40), (60 * i, 0, 0)).save(tmp_path / f"{i}.JPEG")
    names = np.array([b"%d.JPEG" % i for i in range(4)])
    files = Files(tmp_path, names, np.zeros(4, np.int64))
    view = evaluation_view(RESNET, 32)
    return PhotographLoader(Photographs(files, view, False), 2, torch.device("cpu"))


def test_a_batch_that_cannot_be_handed_over_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a socket that hands over shared memory has at most 107 letters."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr("multiprocessing.util.get_temp_dir", lambda: str(long))
    loader = loader_of(tmp_path)
    with pytest.raises(UserError, match=r"\(AF_UNIX path too long\); give a short TMPDIR"):
        list(loader.load(all_batches(4, 2, 0, 1)))


def no_memory(*_: Any) -> None:
    raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")


LOST = {
    "memory": (torch.UntypedStorage, "_share_fd_cpu_", no_memory, "unable to all.*--shm-size"),
    "killed": (
        Photographs, "__getitem__", lambda *_: os.kill(os.getpid(), 9),
        r"DataLoader worker \(pid.*give fewer hardware.workers",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("owner", "name", "how", "said"), LOST.values(), ids=LOST)
def test_a_worker_that_is_lost_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, how: Any, said: str
) -> None:
    loader = loader_of(tmp_path)
    monkeypatch.setattr(owner, name, how)
    with pytest.raises(UserError, match=said):
        list(loader.load(all_batches(4, 2, 0, 1)))


def test_an_error_of_our_own_in_a_worker_is_not_taken_for_a_lost_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: Any) -> None:
        raise RuntimeError("a mistake")

    loader = loader_of(tmp_path)
    monkeypatch.setattr(Photographs, "__getitem__", wrong)
    with pytest.raises(RuntimeError, match="Caught RuntimeError in DataLoader worker"):
        list(loader.load(all_batches(4, 2, 0, 1)))
