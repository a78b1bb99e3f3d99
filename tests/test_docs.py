"""What the pages say of files, commands and the code is so."""

import ast
import itertools
import re
import shlex
import shutil

import pytest

import cosmos_hpc as ch
from cosmos_hpc.cli.parser import make_parser
from cosmos_hpc.cli.runs import with_action
from cosmos_hpc.config.recipe_files import recipe_names
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.config.sweeps import combinations
from cosmos_hpc.run import split_overrides
from cosmos_hpc.runs.stages import STAGES
from tests.conftest import REPOSITORY

PAGES = sorted(
    [
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        REPOSITORY / "benchmarks" / "README.md",
        *(REPOSITORY / "docs").rglob("*.md"),
    ]
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def prose(page):
    return BLOCK.sub("", page.read_text())


def anchors(page):
    """Those that GitHub makes of the headings."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in plain}


def test_links_lead_to_what_is_there():
    broken = []
    for page in PAGES:
        for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", prose(page)):
            path, _, anchor = link.partition("#")
            target = page.parent / path if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(REPOSITORY)}: {link}")
    assert not broken


def commands():
    """The commands of this package in the blocks of shell text, without their comments."""
    for page in PAGES:
        for language, text in BLOCK.findall(page.read_text()):
            if language == "bash":
                for line in text.replace("\\\n", " ").splitlines():
                    words = shlex.split(line, comments=True)
                    if words[:1] == ["cosmos-hpc"]:
                        yield words[1:]


def test_commands_are_those_of_the_command_line():
    """Each is understood, and so are the settings that it gives a recipe."""
    seen = set()
    for words in commands():
        try:
            given, settings = make_parser().parse_known_args(with_action(words))
            assert not [word for word in settings if word.startswith("-")], words
        except SystemExit:
            pytest.fail(f"cosmos-hpc {shlex.join(words)}")
        seen.add(given.command)
        settings = dict(s.split("=", 1) for s in words[1:] if "=" in s and s[0] != "-")
        name = settings.pop("recipe", "")
        settings.pop("cluster", None)
        if given.command in ("submit", "plan") and not name.endswith(".yaml"):
            to_recipe = split_overrides([f"{k}={v}" for k, v in settings.items()])[0]
            combinations(name, to_recipe) or load_recipe(name, to_recipe)
    assert {"submit", "plan", "generate", "cluster", "retry", "convert"} <= seen


def test_files_of_the_code_are_where_pages_say():
    folders = ("", "cosmos_hpc", "cosmos_hpc/worker/stages")
    for page in (REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "docs" / "architecture.md"):
        named = set(re.findall(r"`([\w/]+\.(?:py|md))`", page.read_text()))
        assert len(named) > 8
        for path in named:
            assert any((REPOSITORY / folder / path).exists() for folder in folders), path


def test_the_diagram_of_the_packages_has_the_layers_of_the_import_linter():
    drawn = (REPOSITORY / "docs" / "images" / "packages.svg").read_text()
    names = re.findall(r'class="name" x="(\d+)" y="(\d+)">([\w, ]+)<', drawn)
    rows = itertools.groupby(sorted(names, key=lambda name: int(name[1])), key=lambda name: name[1])
    boxes = [name for _, row in rows for *_, name in sorted(row, key=lambda name: int(name[0]))]
    contract = (REPOSITORY / "pyproject.toml").read_text().partition('containers = ["cosmos_hpc"]')
    layers = ast.literal_eval(re.search(r"^layers = (\[.*?\])$", contract[2], re.M | re.S)[1])
    named = [name for layer in layers[1:] for name in layer.split(" | ")]
    assert ", ".join(boxes) == ", ".join([*named, "the run folder, on the disk"])


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="plans for GPUs of its own")
def test_the_plan_that_is_shown_is_what_the_command_prints():
    text = (REPOSITORY / "docs/training.md").read_text()
    (shown,) = re.findall(r"\$ cosmos-hpc plan (recipe=\S+) (.*)\n((?:.*\n)*?)```", text)
    recipe, overrides, printed = shown
    plan = ch.plan(recipe.removeprefix("recipe="), overrides=overrides.split())
    assert printed == plan.render() + "\n"


def test_the_table_of_gpus_is_what_plans_say():
    """For every recipe that is shipped: at least, and recommended."""
    said = {}
    for line in (REPOSITORY / "README.md").read_text().splitlines():
        if counts := re.findall(r"(\d+) / (\d+)", line):
            named = re.findall(r"`(ar\d\w+)`", line)
            said |= dict(zip(named, counts, strict=True))
    planned = {}
    for name in recipe_names():
        if not name.startswith("ar_tiny"):
            plan = ch.plan(name, overrides=["cluster.gpu=H100-80"])
            planned[name] = (str(plan.minimum.gpus), str(plan.recommended.gpus))
    assert said == planned


def test_the_table_of_stages_is_that_of_the_code():
    text = (REPOSITORY / "docs" / "architecture.md").read_text()
    rows = [re.findall(r"[^|]+", line) for line in re.findall(r"^\| `.*$", text, re.MULTILINE)]
    table = [[cell.strip().strip("`") for cell in row] for row in rows]
    assert [row[0] for row in table] == list(STAGES)
    for (name, work, after, array, gpus, _, sources), stage in zip(
        table, STAGES.values(), strict=True
    ):
        assert stage.work == f"cosmos_hpc.worker.stages.{work.removesuffix('.py')}:{name}"
        assert stage.after == ((after,) if after else ())
        assert stage.array == bool(array) and stage.gpus == bool(gpus)
        assert stage.sources == tuple(filter(None, sources.replace("`", "").split(", ")))


@pytest.mark.parametrize(
    ("page", "module"),
    [("cosmos_hpc", "__init__"), ("models", "models/__init__"), ("nemo_run", "nemo_run")],
)
def test_all_public_names_have_their_place_on_a_page(page, module):
    text = (REPOSITORY / "docs" / "api" / f"{page}.md").read_text()
    listed = {line.rpartition(".")[2] for line in re.findall(r"^::: .*$", text, re.MULTILINE)}
    # Read, not imported: NeMo-Run takes seconds.
    tree = ast.parse((REPOSITORY / "cosmos_hpc" / f"{module}.py").read_text())
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    values = {ast.unparse(node.targets[0]): node.value for node in assigned}
    assert set(ast.literal_eval(values["__all__"])) <= listed
