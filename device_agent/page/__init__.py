"""The operator's page and the HTTP interface beneath it: what a person or a cell controller can do here.

`create_app` gives the ASGI application, `sdk.web.server` runs it on a thread beside the inspection loop.

    state, samples, labels       the HTTP interface by subject: what the device says, pictures, their labels,
    learned, classes, quality    what came of it, which classes there are, what is rejected,
    people, inspection           accounts, and inspection on demand
    desk, fields                 what these share
    pages, text                  HTML for people, and every word of it in every language
    guard, access                who asks, and what they may
    history, alike, asked        what the label log says, what waits for one answer, why it is asked
    book, counts                 the page's own file, and the shift's counters in it
"""

from device_agent.page.access import Access
from device_agent.page.app import create_app
from device_agent.page.book import open_book
from device_agent.page.counts import ShiftCounter
from device_agent.page.server import open_page

__all__ = ["Access", "ShiftCounter", "create_app", "open_book", "open_page"]
