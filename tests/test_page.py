"""The page, in a real browser without a window: by words, by a picture, by a voice; captions and answers."""

from __future__ import annotations

import shutil
import time

import pytest

import beyondvl as bvl
import pictures

webdriver = pytest.importorskip("selenium.webdriver", reason="the page is tested by selenium: pip install selenium")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not CHROMIUM or not DRIVER:
    pytest.skip("the page is tested in chromium: apt-get install chromium chromium-driver", allow_module_level=True)

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402
from test_serve import CAT, NAME, SOUND, Running  # noqa: E402

from beyondvl.serve.app import create_app  # noqa: E402
from beyondvl.serve.settings import Settings  # noqa: E402

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900",
         "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for path in pictures.EXAMPLES.glob("*.jpg"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "<b>bold<i>.jpg").write_bytes(CAT)
    (folder / "query.flac").write_bytes(SOUND)
    return folder


@pytest.fixture(scope="module")
def model():
    return bvl.AutoModel.from_pretrained(NAME)


@pytest.fixture(scope="module")
def index(model, folder):
    index = bvl.Index.for_model(model)
    index.update(model, folder)
    return index


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(service=webdriver.ChromeService(DRIVER), options=options)
    yield driver
    driver.quit()


class Page:
    """What somebody sees and does."""

    def __init__(self, browser, running):
        self.browser = browser
        browser.get(str(running.client.base_url))

    def __getitem__(self, name):
        return self.browser.find_element(By.ID, name)

    def wait(self, test):
        return WebDriverWait(self.browser, 60).until(lambda _: test())

    def speak(self, seconds):
        self["voice"].click()
        self.wait(lambda: self["voice"].text == "Stop")
        time.sleep(seconds)  # the browser's microphone, which beeps
        self["voice"].click()

    @property
    def said(self) -> str:
        return self["said"].text

    @property
    def names(self) -> list[str]:
        return [one.text.split("\n")[1] for one in self.browser.find_elements(By.CSS_SELECTOR, "figcaption")]

    @property
    def pictures(self) -> int:
        shown = "return [...document.querySelectorAll('#results img')].filter(x => x.naturalWidth).length"
        return self.browser.execute_script(shown)


@pytest.fixture(scope="module")
def running(model, index, folder):
    running = Running(create_app(model, NAME, Settings(), index, str(folder)))
    yield running
    running.stop()


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page(browser, running, folder, width):
    browser.set_window_size(width, 900)
    page = Page(browser, running)
    page.wait(lambda: page["model"].text == NAME)
    page["query"].send_keys("a cup of coffee\n")
    page.wait(lambda: page.pictures >= 13)
    assert page.names[0] == "coffee.jpg" and page.said == "14 nearest to “a cup of coffee”"
    answer = running.client.post("/search", json={"query": "a cup of coffee", "k": 24}).json()
    assert page.names == [one["key"] for one in answer["data"]] and "<b>bold<i>.jpg" in page.names
    page["file"].send_keys(str(folder / "rocket.jpg"))
    page.wait(lambda: page.said.endswith("nearest to rocket.jpg"))
    assert page.names[0] == "rocket.jpg"
    page["caption"].click()
    page.wait(lambda: len(page.said) > 5 and "nearest" not in page.said)
    page["question"].send_keys("is there a cat in the picture?\n")
    page.wait(lambda: page.said in ("is there a cat in the picture? no", "is there a cat in the picture? yes"))
    page.speak(seconds=1)
    page.wait(lambda: page.said == "14 nearest to what was said")
    (folder.parent / "bad.jpg").write_bytes(b"none")
    page["file"].send_keys(str(folder.parent / "bad.jpg"))
    page.wait(lambda: "cannot be decoded" in page.said and page["said"].get_attribute("class") == "wrong")
    assert not browser.execute_script("return document.documentElement.scrollWidth > window.innerWidth")
    wrong = [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert all("404" in line or "400" in line for line in wrong), wrong


def test_a_voice_of_which_nothing_was_recorded(browser, running):
    page = Page(browser, running)
    page.speak(seconds=1)
    page.wait(lambda: page.said == "14 nearest to what was said")
    browser.execute_script("Blob.prototype.arrayBuffer = async () => new ArrayBuffer(0)")
    page.speak(seconds=0)
    page.wait(lambda: page.said.startswith("nothing was recorded: ") and page["said"].get_attribute("class") == "wrong")
    assert page["voice"].text == "Speak" and page["voice"].is_enabled()
    browser.execute_script("MediaRecorder.prototype.start = () => { throw new Error('none here') }")
    page["voice"].click()
    page.wait(lambda: page.said == "no microphone: none here")
    assert page["voice"].text == "Speak" and page["voice"].is_enabled()


def test_a_server_with_a_key(browser, model, index, folder):
    running = Running(create_app(model, NAME, Settings(api_key="secret"), index, str(folder)))
    try:
        assert running.client.get("/").status_code == 200  # the page alone needs none
        page = Page(browser, running)
        page["query"].send_keys("a cat\n")
        page.wait(lambda: "server's key" in page.said and page["key"].is_displayed())
        page["key"].send_keys("secret")
        page["go"].click()
        page.wait(lambda: page.pictures >= 13)
        assert page.names[0] in ("cat.jpg", "<b>bold<i>.jpg")
    finally:
        running.stop()
