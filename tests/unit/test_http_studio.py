"""The studio in a real browser: sliders move the picture, dropped pictures are edited, its code has the same bits.

Its C++ is compiled in tests/cpp/test_cpp_directions.py.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")

from PIL import Image
from playwright.sync_api import sync_playwright

from benchmarks.serving import studio
from engine.bundle.fitted import as_defaults
from engine.bundle.rewriter import write_fitted
from engine.imaging import save_images
from tests.http_served import PATIENCE, Served, edited, lone, serving
from tests.samplers import Z_DIM

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")
LACKING = [name for name in ("chromium", "curl") if shutil.which(name) is None]
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"there is no {' and no '.join(LACKING)} on the PATH")
# A canvas as [height, width, 4] numbers in one list.
PIXELS = "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    axes = np.eye(2, Z_DIM, dtype=np.float32)  # as of a prior, which the toy has none of
    with pytest.MonkeyPatch.context() as patch, serving(edited()) as found:
        patch.setattr("engine.http.description.principal_axes", lambda _: axes)
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as api:
        browser = api.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # containers often have no namespaces
        yield browser
        browser.close()


@pytest.fixture
def page(served: Served, browser: Any) -> Iterator[Any]:
    """The studio when everything in it is drawn; a fault of its scripts fails the test, and so does a request elsewhere."""
    faults: list[str] = []
    clipboard = ["clipboard-read", "clipboard-write"]
    page = browser.new_page(viewport={"width": 360, "height": 780}, permissions=clipboard)
    page.set_default_timeout(1000 * PATIENCE)
    page.on("pageerror", lambda error: faults.append(str(error)))
    refused = "Failed to load resource: the server responded with a status of 400"  # shown on the page
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" and refused not in said.text else None)
    here = (f"http://127.0.0.1:{served.port}/", "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(here) else faults.append(request.url))
    page.goto(here[0])
    page.locator("#wall-A[data-drawn]").wait_for()
    page.locator("#scrub-value", has_text="of 8").wait_for()
    yield page
    page.close()
    assert faults == []


def shown(page: Any, canvas: str = "#focus") -> np.ndarray:
    found = np.array(page.locator(canvas).first.evaluate(PIXELS), np.uint8)
    return found.reshape(8, 8, 4)[..., :3]


def settled(page: Any, drawn: int) -> int:
    """Wait until the picture has been drawn again; how often it has been by now."""
    page.locator(f"#focus:not([data-drawn='{drawn}'])").wait_for()
    return int(page.locator("#focus").get_attribute("data-drawn"))


def drawn(page: Any) -> int:
    return int(page.locator("#focus").get_attribute("data-drawn"))


def code_of(page: Any, holds: str) -> str:
    page.locator("#code", has_text=holds).wait_for()
    text: str = page.locator("#code").inner_text()
    return text


def run_python(code: str, out: Path) -> np.ndarray:
    """The images of a program that the page gives."""
    program = f"{code}\nimport numpy\nnumpy.save({str(out)!r}, batch.images)"
    subprocess.run([sys.executable, "-c", program], cwd=out.parent, env={"PYTHONPATH": str(ROOT)}, check=True)
    found: np.ndarray = np.load(out)
    return found


def run_curl(page: Any, folder: Path) -> np.ndarray:
    """The picture that the page's curl command fetches from its server."""
    page.locator("#tab-curl").click()
    subprocess.run(["sh", "-c", code_of(page, "curl -s")], cwd=folder, check=True, timeout=PATIENCE)
    page.locator("#tab-python").click()
    return np.asarray(Image.open(folder / "picture.png"))


def test_the_page_shows_what_python_samples_and_is_readable_on_a_telephone(page: Any) -> None:
    with lone(edited()) as alone:
        np.testing.assert_array_equal(shown(page), alone.sample(seed=0).images[0])
        wall = alone.sample(8, seed=0).images
        for i in (0, 3, 7):
            np.testing.assert_array_equal(shown(page, f"#wall-A button:nth-child({i + 1}) canvas"), wall[i])
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select, canvas[role]')].filter(e => !(e.textContent.trim() || "
        "e.ariaLabel || (e.labels && e.labels.length))).map(e => e.outerHTML)"
    )
    assert unnamed == []


def test_a_slider_moves_the_picture_by_hand_and_by_key_and_its_python_has_the_same_bits(page: Any, tmp_path: Path) -> None:
    before, box = shown(page), page.locator("#direction-0").bounding_box()
    at = drawn(page)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    for part in range(1, 9):
        page.mouse.move(box["x"] + box["width"] * (0.5 + 0.05 * part), box["y"] + box["height"] / 2)
    page.mouse.up()
    settled(page, at)
    page.locator("#direction-1").press("ArrowLeft")
    strengths = [float(page.locator(f"#direction-{i}").input_value()) for i in range(2)]
    assert strengths[0] > 1
    assert strengths[1] == -0.02
    code_of(page, f'edits={{"glasses": {strengths[0]:g}, "beard": -0.02}}')  # that of the last picture drawn
    page.locator("#copy").click()
    page.locator("#copied", has_text="Copied.").wait_for()
    code = page.evaluate("navigator.clipboard.readText()")
    assert not np.array_equal(shown(page), before)
    np.testing.assert_array_equal(run_python(code, tmp_path / "slider.npy")[0], shown(page))
    page.locator("#axis-1").press("ArrowLeft")
    code = code_of(page, "z=z")
    np.testing.assert_array_equal(run_python(code, tmp_path / "axis.npy")[0], shown(page))
    np.testing.assert_array_equal(run_curl(page, tmp_path), shown(page))
    page.locator("#reset").click()
    code_of(page, "sampler.sample(seed=[0])")
    np.testing.assert_array_equal(shown(page), before)


def test_a_dropped_picture_is_reconstructed_edited_and_copied(page: Any, tmp_path: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (1, 8, 8, 3), np.uint8)
    (file,) = save_images(tmp_path / "it's mine.png", picture)
    data = [*file.read_bytes()]
    page.evaluate(
        "data => { const held = new DataTransfer(); held.items.add(new File([new Uint8Array(data)], 'it\\'s mine.png', "
        "{type: 'image/png'})); document.querySelector('#drop').dispatchEvent(new DragEvent('drop', {bubbles: true, "
        "cancelable: true, dataTransfer: held})); }",
        data,
    )
    page.locator("#original-image").wait_for()
    page.locator("#direction-0").press("ArrowRight")
    code = code_of(page, '{"glasses": 0.02}')
    assert "load_images([\"it's mine.png\"], (3, 8, 8))" in code
    np.testing.assert_array_equal(run_python(code, tmp_path / "edited.npy")[0], shown(page))
    np.testing.assert_array_equal(run_curl(page, tmp_path), shown(page))
    page.locator("#back").click()
    page.locator("#tab-cpp").click()
    assert "options.seeds = {0};" in code_of(page, "options.edits")


def test_settings_are_compared_and_an_interpolation_is_scrubbed(page: Any) -> None:
    page.locator("#compare").click()
    page.locator("#steps").fill("2")
    page.locator("#side-B canvas").first.wait_for()
    page.locator("#subject").select_option("wall")
    code_of(page, "steps=2")
    with lone(edited()) as alone:
        two = alone.sample(seed=0, steps=2, method="ddim", temperature=0.8, t_start=450).images[0]
        np.testing.assert_array_equal(shown(page, "#wall-B canvas"), two)
        np.testing.assert_array_equal(shown(page, "#wall-A canvas"), alone.sample(seed=0).images[0])
        page.locator("#subject").select_option("between")
        code_of(page, "steps=2")
        page.locator("#scrub").fill("5")
        frames = alone.interpolate(3, 9, 8, steps=2, method="ddim", temperature=0.8, t_start=450).images
        np.testing.assert_array_equal(shown(page, "#frame"), frames[5])


def test_the_setting_that_is_shown_is_the_one_that_runs(browser: Any, tmp_path: Path) -> None:
    path = shutil.copytree(edited(), tmp_path / "fitted.bundle")
    write_fitted(path, [as_defaults({"timesteps": [390, 210, 90, 20], "t_start": 390, "noise_scale": 0.9})], {})
    with serving(path) as found, lone(path) as alone, browser.new_page() as page:
        page.goto(f"http://127.0.0.1:{found.port}/")
        text = "Fitted: 4 steps of ddim from the start image at t = 390, at 390, 210, 90, 20"
        page.locator("#recorded-text", has_text=text).wait_for()
        assert page.locator("#t_start").input_value() == "390"
        page.locator("#wall-A[data-drawn]").wait_for()
        np.testing.assert_array_equal(shown(page), alone.sample(seed=0).images[0])
        assert alone.sample(seed=0).timesteps.tolist() == [390, 210, 90, 20]


def test_the_last_of_many_movements_is_drawn_and_a_refusal_is_told(page: Any, tmp_path: Path) -> None:
    page.locator("#steps-button").click()
    page.locator("#strip li", has_text="result").wait_for()
    assert page.locator("#strip li").count() == 5
    page.evaluate(
        "() => { const slider = document.querySelector('#direction-1'); for (let i = 0; i <= 100; i++) { "
        "slider.value = i / 50; slider.dispatchEvent(new Event('input', {bubbles: true})); } }"
    )
    code = code_of(page, '"beard": 2')
    assert drawn(page) < 60  # of 101 movements: what was stale was not asked for
    np.testing.assert_array_equal(run_python(code, tmp_path / "last.npy")[0], shown(page))
    page.locator("#t_start").fill("1")
    page.locator("#alert", has_text="expected").wait_for()


def test_the_benchmark_counts_what_is_drawn_while_a_slider_moves(browser: Any) -> None:
    found = studio.measure(edited(), browser, 1.0, threads=1)
    assert found["slider"] == "direction-0"
    assert found["pictures"] == found["gap_ms"]["n"] + 1
    assert found["good"] == (found["pictures_a_second"] >= studio.GOAL)
