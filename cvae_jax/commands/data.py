"""`cvae-jax data`: list the known data sets, or draw a contact sheet of one."""

import dataclasses
from pathlib import Path

from cvae_jax.commands.cli import many_imports
from cvae_jax.config import LARGEST_SEED, DataOptions, require, require_count


@dataclasses.dataclass(frozen=True)
class DataCommand:
    """List the known data sets and say which are here, or draw a contact sheet of one."""

    sheet: str | None = None
    """Draw images of this data set, a row for each class, instead of the list."""
    out: Path | None = None
    """Picture to write (PNG). Default: <name>.png in the current folder."""
    seed: int = 0
    """Seed of the choice of images."""
    data: DataOptions = dataclasses.field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        require_count("seed", self.seed, least=0, most=LARGEST_SEED)
        if self.out is not None:
            is_png = self.out.suffix.lower() == ".png"
            require(is_png, "out", self.out, "a name that ends in .png")


def run(options: DataCommand) -> None:
    """Print the list, or write the picture."""
    if options.sheet is None:
        print(_list(options.data))
        return
    with many_imports():
        from cvae_jax.data.sources import load
        from cvae_jax.drawing import modes
        from cvae_jax.runtime.files import user_path, whole_file

    out = user_path("out", options.out or Path(f"{options.sheet.replace('/', '_')}.png"))
    picture = modes.sheet(load(options.sheet, options.data), options.sheet, options.seed)
    with whole_file(out) as file:
        picture.write(file)
    print(f"{picture.note}\nwrote {out}")


def _list(data: DataOptions) -> str:
    from cvae_jax.data import emnist, tfds
    from cvae_jax.data.sources import KNOWN
    from cvae_jax.runtime.files import user_path

    given = data.data_dir and user_path("data-dir", data.data_dir)
    data_dir = given or tfds.default_folder()
    has_archive = any(path.exists() for path in emnist.copies(data_dir))
    rows = [f"{'name':16} {'shape':12} {'classes':>7} {'training':>9} {'test':>9}  where"]
    for name, known in KNOWN.items():
        if tfds.find_prepared(name, data_dir) or (data_dir / name / "cvae_jax").exists():
            where = str(data_dir / name)
        elif name == "mnist":
            where = "in this package"
        elif name.startswith("emnist/"):
            where = f"in {emnist.ARCHIVE}" if has_archive else "to be downloaded, 562 MB for all"
        else:
            where = "to be downloaded, 30 MB"
        numbers = f"{known.num_classes:>7} {known.num_train:>9,} {known.num_test:>9,}"
        rows.append(f"{name:16} {'28 x 28 x 1':12} {numbers}  {where}")
    rows.append(
        "\n--sheet NAME draws one. Your own data: --source folder --data-dir DIR for images in a "
        "folder for each class, --source idx --data-dir DIR for IDX files."
    )
    return "\n".join(rows)
