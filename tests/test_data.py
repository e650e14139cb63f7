import gzip
import hashlib
import shutil
import struct

import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch
from PIL import Image

import pyroae as pa
from pyroae.data import text
from pyroae.data.named import _amat


def test_digits_are_the_real_ones(grey):
    from sklearn.datasets import load_digits

    assert (len(grey.train), len(grey.test)) == (1437, 360) and grey.event_shape == (64,) and grey.image_shape == (8, 8)
    both = torch.cat([grey.train.x, grey.test.x]) * 16
    original = torch.from_numpy(load_digits().data).float()
    assert torch.equal(both.sum(1).sort().values, original.sum(1).sort().values) and grey.domain == "unit"
    assert grey.test.labels.bincount().min() >= 34  # every class in its share


@pytest.mark.parametrize("name, mean, std", [("mnist", 0.13066, 0.30811), ("fashion-mnist", 0.28604, 0.35302)])
def test_torchvisions_sets(name, mean, std, real_data):
    found = pa.data.load(name)
    assert (len(found.train), len(found.test)) == (60000, 10000) and found.event_shape == (784,) and found.image_shape == (28, 28)
    assert found.train.x.mean().item() == pytest.approx(mean, abs=1e-4) and found.train.x.std().item() == pytest.approx(std, abs=1e-4)
    assert found.test.labels.bincount().tolist() == found.test.labels.bincount(minlength=10).tolist() and found.domain == "unit"


def test_binarized_mnist_is_larochelles(real_data):
    found = pa.data.load("binarized-mnist")
    assert [len(split) for split in (found.train, found.validation, found.test)] == [50000, 10000, 10000] and found.domain == "binary"
    text = np.full((10000, 2 * 784), ord(" "), np.uint8)
    text[:, ::2], text[:, -1] = found.test.x.numpy() + ord("0"), ord("\n")
    assert hashlib.md5(text.tobytes()).hexdigest() == "14e41ae11040adba6ab8cb291eda0dd8"


def test_binarized_mnist_as_amat_text(tmp_path, monkeypatch):
    folder = tmp_path / "binarized_mnist"
    folder.mkdir()
    bits = np.random.default_rng(0).integers(0, 2, (3, 784))
    for name in ("train", "valid", "test"):
        (folder / f"binarized_mnist_{name}.amat").write_text("".join(" ".join(map(str, row)) + "\n" for row in bits))
    monkeypatch.setenv("PYROAE_DATA", str(tmp_path))
    assert torch.equal(pa.data.load("binarized-mnist").validation.x, torch.from_numpy(bits).float())
    (folder / "binarized_mnist_train.amat").write_text("0 1 2")
    with pytest.raises(ValueError, match="784 zeros and ones"):
        _amat(folder / "binarized_mnist_train.amat", 8e9)


def test_omniglot_is_turned_upright(tmp_path, monkeypatch):
    upright = np.zeros((2, 28, 28))
    upright[0, 3, :] = 1.0  # a horizontal bar
    columns = {"data": upright.transpose(0, 2, 1).reshape(2, 784).T, "testdata": np.zeros((784, 1)), "target": np.eye(50)[:, :2]}
    scipy.io.savemat(tmp_path / "chardata.mat", columns)
    monkeypatch.setenv("PYROAE_DATA", str(tmp_path))
    found = pa.data.load("omniglot")
    assert torch.equal(found.train.x.reshape(2, 28, 28), torch.from_numpy(upright).float())
    assert found.train.labels.tolist() == [0, 1] and found.domain == "unit"


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_read_packed_or_not(packed, tmp_path, monkeypatch):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images, labels = np.random.default_rng(0).integers(0, 256, (4, 28, 28)), np.arange(4)
    for which in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = (
                struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}i", *array.shape) + array.astype(np.uint8).tobytes()
            )
            name = folder / f"{which}-{kind}-ubyte"
            (name.with_name(name.name + ".gz") if packed else name).write_bytes(gzip.compress(content) if packed else content)
    monkeypatch.setenv("PYROAE_DATA", str(tmp_path))
    found = pa.data.load("mnist")
    assert torch.equal(found.train.x, torch.from_numpy(images.reshape(4, 784)).float() / 255) and found.test.labels.tolist() == [0, 1, 2, 3]
    broken = next(folder.glob("train-images*"))
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        pa.data.load("mnist")


def _write(path, array):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, train=array[:8], test=array[8:])
    elif path.suffix == ".csv":
        np.savetxt(path, array, delimiter=",", header="a,b,c", comments="")
    else:
        pyarrow = pytest.importorskip("pyarrow", reason="the extra pyroae[parquet] is not installed")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({name: array[:, i] for i, name in enumerate("abc")}), path)


def test_an_empty_cell_of_a_table_is_missing(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,c\n1.5,,3\n4,NA,6\n nan,8.5,9\n2.5,1,7\n")
    found = pa.data.load(tmp_path / "t.csv", test=0.4)
    assert torch.cat([found.train.x, found.test.x]).isnan().sum(0).tolist() == [1, 2, 0]
    assert [column.missing for column in found.schema.columns] == [True, True, False]
    with pytest.raises(ValueError, match="missing in column 'a'.*drop these rows"):
        pa.data.load(tmp_path / "t.csv", missing=False)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".parquet"])
def test_files(suffix, tmp_path):
    array = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    _write(tmp_path / f"table{suffix}", array)
    found = pa.data.load(tmp_path / f"table{suffix}")
    assert (len(found.train), len(found.test)) == (8, 2) and found.event_shape == (3,) and found.domain == "real"
    rows = torch.cat([found.train.x, found.test.x]).numpy()
    assert np.allclose(rows[rows[:, 0].argsort()], array[array[:, 0].argsort()])


@pytest.mark.parametrize(
    "values, domain",
    [
        ([[0, 1], [1, 1]], "binary"),
        ([[0.0, 0.5], [1.0, 0.2]], "unit"),
        ([[0, 7], [1, 1]], "counts"),
        ([[-1.0, 2.5], [0, 1]], "real"),
        ([[0.5, 2.5], [0, 1]], "real"),
    ],
)
def test_the_domain_is_found_from_the_values(values, domain):
    assert pa.data.load(torch.tensor(values * 5)).domain == domain


def test_a_domain_that_is_said_is_kept():
    x = torch.tensor([[0.0, 1.0]] * 10)
    assert pa.data.load(x, domain="unit").domain == "unit" and pa.data.load(x, domain="real").domain == "real"
    assert pa.data.load(x, domain="categories").domain == "categories"


@pytest.mark.parametrize("mode, shape", [("L", (5, 4)), ("RGB", (5, 4, 3)), ("RGBA", (5, 4, 4))])
def test_a_folder_of_images(mode, shape, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, *shape)).astype(np.uint8)
    for i, image in enumerate(pixels):
        folder = tmp_path / ("cats" if i % 2 else "dogs")
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    found = pa.data.load(tmp_path)
    upright = (1, 5, 4) if mode == "L" else (shape[2], 5, 4)
    assert found.image_shape == found.event_shape == upright and found.domain == "unit" and len(found.train) + len(found.test) == 6
    assert found.schema.classes == ("cats", "dogs")
    whole = torch.cat([found.train.x, found.test.x])
    assert whole.sum().item() == pytest.approx(pixels.sum() / 255, rel=1e-5) and set(found.train.labels.tolist()) <= {0, 1}
    assert len(found.train.labels) == len(found.train)


def test_folders_called_train_and_test_are_splits_and_hidden_ones_nothing(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (26, 4, 5)).astype(np.uint8)
    folders = [f"{split}/{name}" for split in ("test", "train", "val") for name in ("cat", "dog")]
    for i, image in enumerate(pixels):
        folder = tmp_path / (folders[i % 6] if i < 24 else (".thumbnails", "train/.ipynb_checkpoints")[i % 2])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.{'tif' if i % 5 == 0 else 'png'}")
    found = pa.data.load(tmp_path)
    assert [len(split) for split in (found.train, found.validation, found.test)] == [8, 8, 8]
    assert found.schema.classes == ("cat", "dog") and found.test.labels.tolist() == [0] * 4 + [1] * 4
    held_out = sorted(pixels[i].sum() for i in range(24) if i % 6 < 2)
    assert sorted(round(255 * x.sum().item()) for x in found.test.x) == held_out


IMAGES = {  # mode -> what is expected of an image of 2 x 3 pixels
    "16-bit": (lambda: Image.fromarray(np.array([[0, 1, 2], [65535, 40000, 3]], np.uint16)), [0, 1 / 65535, 2 / 65535, 1, 40000 / 65535]),
    "palette": (lambda: Image.fromarray(np.eye(2, 3, dtype=np.uint8)[..., None].repeat(3, 2) * 255).quantize(2), [1, 0, 0, 0, 1]),
    "alpha": (lambda: Image.fromarray(np.full((2, 3, 4), 51, np.uint8)), [0.2] * 5),
    "turned by EXIF": (lambda: Image.fromarray(np.array([[10, 40], [20, 50], [30, 60]], np.uint8)), [30, 20, 10, 60, 50]),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_are_decoded_as_what_they_are(kind, tmp_path):
    make, expected = IMAGES[kind]
    image, more = make(), {}
    if kind == "turned by EXIF":
        more["exif"] = image.getexif()
        more["exif"][0x0112] = 6  # a quarter turn clockwise
        expected = [value / 255 for value in expected]
    for i in range(2):
        image.save(tmp_path / f"{i}.png", **more)
    x = pa.data.load(tmp_path).train.x[0]
    assert x.shape == ({"palette": 3, "alpha": 4}.get(kind, 1), 2, 3)
    assert x[0].flatten()[:5].tolist() == pytest.approx(expected, abs=1e-6)


def test_images_of_several_modes_are_refused_with_their_names(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match=r"got grey in .*a\.png and colour in .*b\.png"):
        pa.data.load(tmp_path)
    Image.fromarray(np.zeros((4, 4, 2), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is an image of mode LA"):
        pa.data.load(tmp_path)


def test_files_of_several_images_are_refused(tmp_path):
    frames = [Image.new("L", (4, 5), level) for level in (0, 200)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="a.tif holds several images, expected one"):
        pa.data.load(tmp_path)


def test_a_structured_array_in_a_file_is_a_table(tmp_path):
    np.save(tmp_path / "t.npy", np.array([(i / 7, i % 2) for i in range(30)], dtype=[("size", "f8"), ("kind", "i4")]))
    found = pa.data.load(tmp_path / "t.npy")
    assert [(column.name, column.kind) for column in found.schema.columns] == [("size", "real"), ("kind", "binary")]


def test_colour_keeps_its_channel_from_the_array_to_the_picture(tmp_path):
    red = np.zeros((30, 8, 8, 3), np.uint8)
    red[..., 0] = 200
    np.save(tmp_path / "red.npy", red)
    found = pa.data.load(tmp_path / "red.npy")
    assert found.image_shape == (3, 8, 8) and found.train.x.mean((0, 2, 3)).tolist() == pytest.approx([200 / 255, 0, 0])
    vae = pa.recipes.vae(found, latent_dim=2, hidden=4).replace(encoder=pa.nets.Conv(), decoder=pa.nets.Deconv())
    assert vae.reconstruct(red[:2]).shape == (2, 3, 8, 8)
    series = pa.data.load(np.random.default_rng(0).normal(size=(20, 12, 3)))
    assert series.image_shape is None and series.event_shape == (12, 3)


def test_folders_beside_the_splits_are_refused(tmp_path):
    def image(name):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name)

    image("test/a/0.png")
    with pytest.raises(ValueError, match="expected a folder train in .*, got test alone"):
        pa.data.load(tmp_path)
    image("Training/a/0.png")
    assert len(pa.data.load(tmp_path).train) == 1
    image("unlabelled/0.png")
    with pytest.raises(ValueError, match="got unlabelled beside Training, test"):
        pa.data.load(tmp_path)


def test_sixteen_bit_arrays_are_grey_levels_where_they_are_images():
    x = np.random.default_rng(0).integers(0, 65536, (20, 9, 8)).astype(np.uint16)
    found = pa.data.load(x)
    assert found.domain == "unit" and found.image_shape == (1, 9, 8) and float(found.train.x.max()) <= 1
    vae = pa.recipes.vae(found, latent_dim=2, hidden=4)
    assert torch.allclose(vae.encode(x).mean, vae.encode(torch.from_numpy(x / 65535).float()).mean, atol=1e-5)
    assert pa.data.load(x[:, 0] % 9).domain == "counts"  # of columns, such as genes


def test_whole_numbers_far_from_zero_are_no_counts():
    years = np.random.default_rng(0).integers(1990, 2020, (30, 2))
    assert pa.data.load(years).domain == "real" and pa.data.load(years, domain="counts").domain == "counts"


def test_labels_may_be_text(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(30, 3)), np.resize(["cat", "dog", "ape"], 30)
    found = pa.data.load((x, y))
    assert found.schema.classes == ("ape", "cat", "dog") and len(found.train.labels.unique()) == 3
    vae = pa.recipes.conditional(found, latent_dim=2, hidden=4)
    assert torch.equal(vae.encode(x, y).mean, vae.encode(x, torch.tensor([1, 2, 0] * 10)).mean)
    with pytest.raises(ValueError, match="'cow' in 30 rows, unknown to this model"):
        vae.encode(x, ["cow"] * 30)
    np.savez(tmp_path / "x.npz", train=x, train_labels=y, test=x[:2], test_labels=["dog", "dog"])
    assert pa.data.load(tmp_path / "x.npz").test.labels.tolist() == [2, 2]


def test_a_rows_numbers_lie_side_by_side(tmp_path, monkeypatch):
    columns = np.asfortranarray(np.random.default_rng(0).integers(0, 2, (30, 98)).astype(np.uint8))
    (tmp_path / "binarized_mnist").mkdir()
    np.savez(tmp_path / "binarized_mnist" / "binarized_mnist.npz", train=columns, valid=columns, test=columns)
    monkeypatch.setenv("PYROAE_DATA", str(tmp_path))
    by_columns = torch.rand(5, 30).T
    splits = (pa.data.load("binarized-mnist").train, pa.data.load(by_columns).train, pa.data.Split(by_columns, None, "unit"))
    assert all(split.x.is_contiguous() for split in splits)


def test_sparse_matrices_in_a_file(tmp_path):
    matrix = scipy.sparse.random(40, 9, 0.3, format="csr", random_state=0)
    scipy.sparse.save_npz(tmp_path / "x.npz", matrix)
    found = pa.data.load(tmp_path / "x.npz")
    assert sum(split.x.sum().item() for split in found.splits.values()) == pytest.approx(matrix.sum(), rel=1e-5)
    with pytest.raises(ValueError, match="more than the limit"):
        pa.data.load(tmp_path / "x.npz", limit=1000)


def test_splits_of_one_file_are_on_one_scale(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 64)).astype(np.uint8)
    pixels[::10] = [[0], [255], [255]]
    labels = np.arange(20) % 3
    np.savez(tmp_path / "x.npz", train=pixels[:20], train_labels=labels, val=pixels[20:25] / 255, test=pixels[20:].astype(float))
    found = pa.data.load(tmp_path / "x.npz")
    assert found.train.labels.tolist() == labels.tolist() and torch.equal(found.validation.x, found.test.x[:5])
    normal = np.random.default_rng(0).normal(size=(30, 3))
    np.savez(tmp_path / "x.npz", train=normal[:20], test=1000 * normal[20:] + 500)
    with pytest.raises(ValueError, match="test is on another scale than train: entry . is .* in train and .* in test"):
        pa.data.load(tmp_path / "x.npz")


def test_eight_bit_arrays_are_grey_levels():
    x = np.random.default_rng(0).integers(0, 256, (10, 6, 5)).astype(np.uint8)
    found = pa.data.load(x)
    assert found.domain == "unit" and found.image_shape == found.event_shape == (1, 6, 5)


# --- binarization ---


def test_threshold_and_static(grey):
    threshold, static = pa.data.load("digits", binarize="threshold"), pa.data.load("digits", binarize="static")
    assert torch.equal(threshold.train.x, (grey.train.x > 0.5).float()) and threshold.domain == "binary"
    assert torch.equal(static.train.x, pa.data.load("digits", binarize="static").train.x)
    assert static.train.x.mean().item() == pytest.approx(grey.train.x.mean().item(), abs=0.01)
    assert not static.train.dynamic and torch.equal(static.train.draw(static.train.x), static.train.x)


def test_dynamic_draws_training_data_afresh_and_keeps_held_out_data(grey):
    found = pa.data.load("digits", binarize="dynamic", validation=0.1)
    assert found.domain == "binary" and found.train.dynamic and torch.equal(found.train.x[:0], grey.train.x[:0])
    once, twice = found.train.draw(found.train.x), found.train.draw(found.train.x)
    assert not torch.equal(once, twice) and set(once.unique().tolist()) == {0.0, 1.0}
    for split in (found.test, found.validation):
        assert not split.dynamic and set(split.x.unique().tolist()) == {0.0, 1.0}


def test_validation_is_held_out_of_training(grey):
    found = pa.data.load("digits", validation=0.25)
    assert (len(found.train), len(found.validation), len(found.test)) == (1078, 359, 360)
    together = torch.cat([found.train.x, found.validation.x])
    assert torch.equal(together.sum(1).sort().values, grey.train.x.sum(1).sort().values)


def test_a_split_is_sliced(grey):
    some, chosen = grey.train[10:30], grey.train[torch.tensor([3, 1])]
    assert torch.equal(some.x, grey.train.x[10:30]) and torch.equal(some.labels, grey.train.labels[10:30])
    assert torch.equal(chosen.x, grey.train.x[[3, 1]]) and chosen.domain == grey.domain
    with pytest.raises(TypeError, match=r"a slice, split\[:100\].*got 3"):
        grey.train[3]


def test_read_only_data_are_not_touched(real_data, tmp_path, monkeypatch):
    import os

    source = os.environ["PYROAE_DATA"]
    shutil.copytree(f"{source}/MNIST", tmp_path / "MNIST")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    monkeypatch.setenv("PYROAE_DATA", str(tmp_path))
    pa.data.load("mnist")
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("place", [0, 3, 4, 8])  # a chunk of 4 rows begins at 0, 4 and 8: there pandas drops cells in silence
def test_a_row_with_more_cells_than_the_header_is_refused_wherever_it_stands(place, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "_CHUNK", 4)
    rows = [f'"x, {i}",{i}' for i in range(20)]
    (tmp_path / "a.csv").write_text("\n".join(["name,value", *rows]))
    assert text.read(tmp_path / "a.csv", {}, [], 1e9)[0].shape == (20, 2)
    rows[place] += ",7"
    (tmp_path / "a.csv").write_text("\n".join(["name,value", *rows]))
    with pytest.raises(ValueError, match=f"expected 2 cells in line {place + 2}, got 3"):
        text.read(tmp_path / "a.csv", {}, [], 1e9)


# --- larger than memory ---


@pytest.fixture
def tiny_memory(monkeypatch):
    """A machine on which the small sets of these tests are too large for memory."""
    from pyroae.data import images, readers, splits

    monkeypatch.setattr(readers, "MEMORY", 1000)
    monkeypatch.setattr(images, "MEMORY", 1000)
    monkeypatch.setattr(splits, "FEW", 300)
    monkeypatch.setattr(readers, "_CHUNK", 7)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.int16, ">f4"])
def test_a_large_npy_stays_on_disk_and_reads_as_the_small_one(dtype, tmp_path, tiny_memory, monkeypatch):
    array = np.random.default_rng(0).integers(0, 200, (101, 5, 2)).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    large = pa.data.load(tmp_path / "x.npy", test=0.3)
    monkeypatch.undo()
    small = pa.data.load(tmp_path / "x.npy", test=0.3)
    assert not isinstance(large.train.x, torch.Tensor) and isinstance(small.train.x, torch.Tensor)
    for ours, theirs in ((large.train, small.train), (large.test, small.test)):
        assert ours.domain == theirs.domain and len(ours) == len(theirs) and ours.event_shape == theirs.event_shape
        both = [x[:][(x[:].double().flatten(1) @ torch.linspace(1, 2, 10).double().exp()).argsort()] for x in (ours.x, theirs.x)]
        assert torch.equal(*both)
    rows = torch.tensor([9, 3, 3, 60])
    assert torch.equal(large.train.x[rows], large.train.x[:][rows]) and torch.equal(large.train.x[4], large.train.x[:][4])
    assert large.train.x[0:0].shape == (0, *small.event_shape)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("large", [True, False])
def test_tables_are_read_batch_by_batch(suffix, large, tmp_path, request):
    pyarrow = pytest.importorskip("pyarrow", reason="the extra pyroae[parquet] is not installed")
    if large:
        request.getfixturevalue("tiny_memory")
    array = np.random.default_rng(0).normal(size=(100, 3))
    table = pyarrow.table({name: array[:, i] for i, name in enumerate("abc")})
    if suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "x.parquet", row_group_size=30)
    else:
        with pyarrow.ipc.new_file(tmp_path / "x.arrow", table.schema) as file:
            file.write_table(table, max_chunksize=30)
    found = pa.data.load(tmp_path / f"x{suffix}", test=0.2)
    assert isinstance(found.train.x, torch.Tensor) != large
    rows = torch.cat([found.train.x[:], found.test.x[:]])
    assert torch.equal(rows[rows[:, 0].argsort()], torch.from_numpy(array[array[:, 0].argsort()]).float())


@pytest.mark.parametrize("binarize", [None, "threshold", "dynamic"])
def test_images_on_disk_train_by_workers_as_in_memory(binarize, tmp_path, tiny_memory, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4, 4)).astype(np.uint8)
    for i, image in enumerate(pixels):
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / str(i % 2) / f"{i}.png")
    found = pa.data.load(tmp_path, binarize=binarize, test=0.1)
    assert found.train.x.workers > 0 and found.image_shape == (1, 4, 4) and len(found.train.labels) == 36
    monkeypatch.undo()
    again = pa.data.load(tmp_path, binarize=binarize, test=0.1)
    assert sorted(found.train.x[:].flatten(1).sum(1).tolist()) == pytest.approx(sorted(again.train.x.flatten(1).sum(1).tolist()))
    likelihood = pa.likelihoods.ContinuousBernoulli((1, 4, 4)) if binarize is None else pa.likelihoods.Bernoulli((1, 4, 4))
    ae = pa.Autoencoder(pa.priors.Normal(2), likelihood, pa.posteriors.Normal(), pa.nets.MLP(8), pa.nets.MLP(8))
    losses = pa.fit(ae, found.train, epochs=2, batch_size=10, progress=False, seed=0, compile="eager").loss
    assert np.isfinite(losses).all()


def test_what_is_on_disk_is_trained_on_and_scored_as_in_memory(tmp_path, tiny_memory, grey):
    from pyroae.training.batches import Batches

    bits = grey.train.x.round()
    np.save(tmp_path / "x.npy", bits.numpy())
    found = pa.data.load(tmp_path / "x.npy", test=0.3)
    read = torch.cat([x for (x,) in Batches(found.train, 7, torch.device("cpu"), shuffle=True)])
    assert sorted(read.sum(1).tolist()) == sorted(found.train.x[:].sum(1).tolist()) and not torch.equal(read, found.train.x[:])
    ends = []
    for x in (found.train.x, found.train.x[:]):
        torch.manual_seed(0)
        ae = pa.recipes.vae(pa.data.load(bits))
        pa.fit(ae, x, epochs=1, seed=0, progress=False, compile="eager")
        scores = pa.log_likelihood(ae, found.test.x if x is found.train.x else found.test.x[:], particles=5, proposal="guide").values
        ends.append([*ae.parameters(), pa.elbo_terms(ae, x).elbo, scores])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_what_is_wrong_on_disk_is_refused_when_it_is_met(tmp_path, tiny_memory):
    x = np.zeros((2000, 4), np.float32)
    x[1500] = 0.5
    np.save(tmp_path / "x.npy", x)
    train = pa.data.load(tmp_path / "x.npy", domain="unit").train
    ae = pa.Autoencoder(pa.priors.Normal(2), pa.likelihoods.Bernoulli(4), pa.posteriors.Normal(), pa.nets.MLP(8), pa.nets.MLP(8))
    with pytest.raises(ValueError, match="0 or 1"):
        pa.fit(ae, train, epochs=1, progress=False)
    with pytest.raises(ValueError, match="too large to be binarized once"):
        pa.data.load(tmp_path / "x.npy", domain="unit", binarize="static")
    x[1500] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match="NaN"):
        pa.fit(ae, pa.data.load(tmp_path / "x.npy", domain="binary").train, epochs=1, progress=False)


def test_a_slice_of_what_is_on_disk(tmp_path, tiny_memory):
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    found = pa.data.load(str(tmp_path / "x.npy")).train
    assert torch.equal(found[5:9].x, found.x[5:9])


def test_the_temporary_file_of_a_large_table_has_no_name_that_a_killed_process_could_leave(tmp_path, tiny_memory, monkeypatch):
    import tempfile

    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra pyroae[parquet] is not installed")
    import pyarrow

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    table = pyarrow.table({"a": np.arange(1000.0), "b": np.arange(1000.0)})
    parquet.write_table(table, tmp_path / "x.parquet")
    found = pa.data.load(tmp_path / "x.parquet")
    assert list((tmp_path / "temporary").iterdir()) == [] and found.train.x[3].tolist()[0] == found.train.x[3].tolist()[1]
    parquet.write_table(table.append_column("c", [["text"] * 1000]), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="expected only numbers in a table too large for memory, got string in column 'c'"):
        pa.data.load(tmp_path / "x.parquet")


def test_what_is_held_out_of_rows_on_disk_is_in_memory_and_can_be_binarized(tmp_path, tiny_memory):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (200, 6)).astype(np.uint8))
    found = pa.data.load(tmp_path / "x.npy", binarize="dynamic")
    assert len(found.test) == 12 and isinstance(found.test.x, torch.Tensor) and found.test.domain == "binary"
    assert len(found.train) == 188 and not isinstance(found.train.x, torch.Tensor)
