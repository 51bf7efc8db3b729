"""Tests of the dashboard in a browser. Each is named by the promise it keeps.

    dashboard.py PROGRAM SCREENSHOTS
"""

import http.server
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request

from page import Page, Program
from selenium.webdriver.common.keys import Keys

SETTLED = ("FULFILLED", "FAILED")
ODD = "a/b \"c\" 'd' <i>&?#%41 \u00e9"


def status_of(page, id):
    return next((status for found, status, _ in page.rows() if found == id), None)


def count(page, label):
    """Returns the count with this label."""
    return page.run(
        "return [...document.querySelectorAll('.counts a')].find(a => a.innerText.includes(arguments[0]))"
        ".querySelector('.value').textContent",
        label,
    )


def an_order_created_on_the_page_is_seen_to_settle_without_a_reload(program, page):
    page.open()
    page.run("window.isTheSame = true")
    page.click(".dev button", "^1 order$")
    id = page.until("the order is in the list", lambda: page.rows())[0][0]
    page.until("it is settled", lambda: status_of(page, id) in SETTLED)
    page.until("it is counted", lambda: count(page, "All") == "1" and count(page, "Open") == "0")
    assert page.run("return window.isTheSame"), "the page was loaded again"
    navigations = page.run("return performance.getEntriesByType('navigation')[0].name + performance.getEntriesByType('navigation').length")
    assert navigations == f"{program.url}/1", navigations


def a_count_leads_to_its_orders_and_the_filter_is_in_the_address(program, page):
    page.open()
    page.click(".dev button", "^100 orders$")
    page.until("all are created", lambda: "Created 100 orders" in page.text(".dev"))
    page.until("all are settled", lambda: count(page, "All") == "101" and count(page, "Open") == "0")
    for status in SETTLED:
        page.click(".counts a", status)
        assert page.address() == f"/?status={status}"
        page.until("they are listed", lambda: {row[1] for row in page.rows()} == {status})
    page.browser.back()
    page.until("back leads back", lambda: {row[1] for row in page.rows()} == {"FULFILLED"})
    page.click(".counts a", "Latest changes")
    page.until("the latest are listed", lambda: page.address() == "/" and len(page.rows()) == 30)


def a_list_is_read_page_by_page_and_each_page_has_an_address(program, page):
    page.open("/?list=all")
    first = page.until("a page is there", lambda: page.rows())
    assert len(first) == 50, len(first)
    page.click(".pages a", "Next page")
    second = page.until("the next page is there", lambda: page.rows() != first and page.rows())
    assert "after=" in page.address()
    assert not {row[0] for row in first} & {row[0] for row in second}
    page.open(page.address())
    page.until("its address leads to it", lambda: page.rows() == second)
    page.click(".pages a", "First page")
    page.until("the first page is there", lambda: page.rows() == first)


def an_order_shows_its_journal_and_a_command_that_works(program, page):
    page.open("/?status=FULFILLED")
    page.click(".orders a")
    page.until("its journal is there", lambda: len(page.all(".timeline li")) == 3)
    assert re.search(r"has been FULFILLED since 20\S+Z\. It took", page.text(".order")), "an age would grow old"
    for words in ("It was created.", "Its process was started.", "Its process succeeded.", "a settled order never changes"):
        assert words in page.text(".order"), words
    command = page.text(".command code")
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert page.text("#order-title bdi") in ran.stdout and "FULFILLED" in ran.stdout
    page.check_everywhere("order")
    # A later test looks for complaints of the browser.
    page.run("navigator.clipboard.writeText = () => Promise.reject(new Error('denied'))")
    page.click(".command button")
    assert page.text(".command button") == "Copy"


def a_link_leads_to_the_same_order_in_the_same_list_and_back_leads_back(program, page):
    id = program.ask("/order?status=FAILED&limit=1")[0]["id"]
    page.open(f"/?status=FAILED&order={id}")
    page.until("the order is open", lambda: page.text("#order-title bdi") == id and page.all(".timeline li"))
    page.until("the list is there", lambda: {row[1] for row in page.rows()} == {"FAILED"})
    page.click(".close")
    page.until("it is closed", lambda: not page.all("#order-title") and page.address() == "/?status=FAILED")
    page.browser.back()
    page.until("back opens it again", lambda: page.text("#order-title bdi") == id)
    page.browser.forward()
    page.until("forward closes it again", lambda: not page.all("#order-title"))


def an_order_is_found_by_its_id_whatever_is_in_it(program, page):
    program.create(ODD)
    page.open()
    page.one("#find").send_keys(ODD, Keys.ENTER)
    page.until("it is found", lambda: page.text("#order-title bdi") == ODD and page.all(".timeline li"))
    assert urllib.parse.parse_qs(page.address()[2:])["order"] == [ODD]
    ran = subprocess.run(["sh", "-c", page.text(".command code")], capture_output=True, text=True, check=True)
    assert '"status"' in ran.stdout and "problems" not in ran.stdout, ran.stdout
    page.one("#find").clear()
    # The browser logs a 404.
    page.one("#find").send_keys("none", Keys.ENTER)
    page.until("it is reported", lambda: "There is no order with this id" in page.text(".order"))
    expected = [words for words in page.complaints() if "/order/none" not in words]
    assert not expected, expected


def it_works_by_keyboard(program, page):
    page.open()
    page.press(Keys.TAB)
    assert page.run("return document.activeElement.textContent") == "To the orders"
    page.tab_to(".orders a")
    id = page.run("return document.activeElement.textContent")
    outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "the focus can be seen"
    page.press(Keys.ENTER)
    page.until("it is open", lambda: page.text("#order-title bdi") == id)
    assert page.run("return document.activeElement.id") == "order-title"
    page.tab_to(".close")
    page.press(Keys.ENTER)
    page.until("it is closed", lambda: not page.all("#order-title"))
    assert page.run("return document.activeElement.textContent") == id, "the focus is where it was"


def a_broken_upstream_is_described_until_it_is_repaired(program, page):
    page.open()
    page.check_everywhere("well")
    page.click(".dev button", "^down$")
    page.click(".dev button", "^10 orders$")
    page.until("it is reported", lambda: page.text("#verdict") == "The upstream is down")
    page.until(
        "the sentence says how many wait",
        lambda: "The upstream has" in page.text(".signs") and "10 orders wait, the oldest for" in page.text(".signs"),
    )
    assert page.browser.title.startswith("The upstream is down")
    page.until("they are marked", lambda: [note for _, _, note in page.rows()].count("no answer") == 10)
    page.until("they need no operator", lambda: "10 orders proceed by themselves. No answer: 10." in page.text(".counts"))
    assert count(page, "Need an operator") == "0"
    page.click(".reasons a")
    page.until("they are listed", lambda: page.address() == "/?attention=itself" and len(page.rows()) == 10)
    assert not page.all(".needy")
    page.click(".orders a")
    page.until("the reason is shown", lambda: "Why it does not proceed" in page.text(".order"))
    assert "Nothing is started before it answers" in page.text(".order")
    page.check_everywhere("broken")
    page.click(".dev button", "^calm$")
    page.until("all is well", lambda: page.text("#verdict") == "Everything runs")
    page.until("the open order has settled", lambda: "a settled order never changes" in page.text(".order"))
    page.until("the list is empty", lambda: "There is none now" in page.text(".list"))


# Changes to healthy statistics, with the expected verdict and a part of the sentences.
STATISTICS = [
    ({}, "Everything runs", "It has answered for 3 min. The last pass ended 2 s ago; the next is due in 9 s."),
    (
        {"upstream.life.expected_seconds": 420, "pace.starts_per_second": 12, "pace.reason": "the upstream was restarted", "restarts.last_hour": 3},
        "Everything runs",
        "It restarts about every 7 min; 3 orders were started again in the last hour. The start rate is reduced to 12/s: the upstream was restarted.",
    ),
    ({"upstream.life.expected_seconds": 21_599}, "Everything runs", "It restarts about every 6 h;"),
    (
        {"pace.starts_per_second": 12.5, "pace.reason": "the upstream did not answer in time"},
        "Everything runs",
        "The start rate is reduced to 13/s: the upstream did not answer in time.",
    ),
    (
        {"pace.wait_seconds": 40, "orders.CREATED": 2000},
        "Everything runs",
        "2,000 orders wait to be started, about 40 s or more at 50 starts/s.",
    ),
    (
        {"pace.wait_seconds": None, "pace.window": 1600, "pace.in_flight": 1600, "orders.CREATED": 2000},
        "Everything runs",
        "No order is started until a process has ended: at most 1,600 processes run at once, because the upstream forgets them when it crashes.",
    ),
    (
        {"upstream.detail": "it throttles starts: 36 in a row were answered 429, since 2026-11-22T09:59:00.000Z", "pace.wait_seconds": None},
        "The upstream throttles requests",
        "It has answered for 3 min, but it throttles starts: 36 in a row were answered 429, since 2026-11-22T09:59:00.000Z.",
    ),
    (
        {"upstream.status": "down", "upstream.since": -40, "upstream.detail": "no route to it", "orders.CREATED": 37},
        "The upstream is down",
        "The upstream has not answered for 40 s: no route to it. 37 orders wait, the oldest for 2 min.",
    ),
    (
        {"upstream.status": "down", "upstream.since": -40, "upstream.detail": "it answered 503"},
        "The upstream is down",
        "The upstream has given no usable answer for 40 s: it answered 503. No order waits for it.",
    ),
    (
        {"reconciler.status": "overdue", "reconciler.last_pass_at": -200, "reconciler.next_pass_at": -80, "reconciler.detail": "the reconciler was killed, is stuck, or cannot write to the database"},
        "The reconciler has stopped",
        "The last pass ended 3 min ago. The reconciler was killed, is stuck, or cannot write to the database. Orders do not proceed until it runs again.",
    ),
    # Both passes are ahead of the clock.
    (
        {"reconciler.status": "overdue", "reconciler.last_pass_at": 3600, "reconciler.next_pass_at": 3601, "reconciler.detail": "the clock was set back"},
        "The reconciler has stopped",
        "It has answered for 3 min. The clock was set back. Orders do not proceed until it runs again.",
    ),
    (
        {"reconciler.status": "none", "reconciler.since": None, "reconciler.detail": "no reconciler has led on this database yet"},
        "No reconciler runs",
        "No reconciler has led on this database yet. Orders are stored, but do not proceed until one runs.",
    ),
    (
        {"reconciler.status": "none", "reconciler.since": -90, "reconciler.detail": "no reconciler runs: the last one has shut down"},
        "No reconciler runs",
        "No reconciler runs: the last one has shut down, 90 s ago. Orders are stored, but do not proceed until one runs.",
    ),
    (
        {"database.status": "failing", "database.since": -5, "database.detail": "orders cannot be written; the log says why"},
        "Orders cannot be written",
        "It has failed for 5 s: orders cannot be written; the log says why. Creations are answered with 503.",
    ),
    (
        {"attention.process_lost": 1, "attention_by.operator": 1, "orders.PROCESSING": 3},
        "1 order needs an operator",
        "3 orders are PROCESSING; 1 process is lost.",
    ),
    # All processes were lost, and are started again.
    (
        {"attention.process_lost": 130, "attention_by.itself": 130, "orders.PROCESSING": 130, "pace.window": 400},
        "Everything runs, some orders are delayed",
        "130 orders are PROCESSING (limit: 400); 130 processes are lost.",
    ),
    ({"attention.upstream_unreachable": 2, "attention_by.itself": 2}, "The upstream answers for some orders only", ""),
    ({"upstream.status": "unknown", "upstream.since": None}, "Not known yet whether the upstream answers", "It is not known yet whether it answers."),
    # At rest the heartbeat is written every five seconds.
    (
        {"reconciler.last_pass_at": -4.6, "reconciler.next_pass_at": -4},
        "Everything runs",
        "It has led for 12 min, with a pass every second or so.",
    ),
    (
        {"reconciler.last_pass_at": -70, "reconciler.next_pass_at": -10},
        "Everything runs",
        "The last pass ended 70 s ago; the next was due 10 s ago.",
    ),
    ({"database.bytes": 1_000_000, "database.wal_bytes": 3_000_000}, "Everything runs", "It has 4.0 MB on disk, 3.0 MB of it in its log."),
    ({}, "Everything runs", "It has 123 bytes on disk."),
]

# Numbers of FULFILLED and FAILED orders, and the displayed share.
SHARES = [(0, 0, None), (100, 0, "0 %"), (100, 113, "53 %"), (9_999, 1, "less than 1 %"), (1, 9_999, "more than 99 %"), (0, 3, "100 %")]


def the_sentences_say_what_the_statistics_say(program, page):
    page.open()
    results = page.browser.execute_async_script(
        """
        const [changes, done] = arguments;
        const moment = Date.parse("2026-11-22T10:00:00Z");
        const at = (seconds) => new Date(moment + seconds * 1000).toISOString();
        const well = () => ({
          orders: { CREATED: 0, PROCESSING: 0, FULFILLED: 100, FAILED: 90 },
          attention_by: { operator: 0, itself: 0 },
          attention: { start_refused: 0, upstream_unreachable: 0, unknown_status: 0, process_lost: 0, max_starts: 0 },
          oldest_open: { id: "a1", status: "CREATED", created_at: at(-130) },
          restarts: { last_hour: 0, total: 0 },
          database: { status: "ok", since: at(-700), detail: null, bytes: 123, wal_bytes: 0 },
          upstream: { status: "up", since: at(-180), detail: null, last_seen_at: at(-2), process_seconds: null,
            life: { processes: null, began_at: null, ended: 0, expected_processes: null, expected_seconds: null } },
          reconciler: { status: "leading", since: at(-700), detail: null, last_pass_at: at(-2), next_pass_at: at(9), next_look_at: null, policy: "restart" },
          pace: { starts_per_second: 50, ceiling: 50, reason: null, in_flight: 0, window: null, wait_seconds: 1, resting_until: null },
        });
        import("/dashboard/words.js").then(({ signs, verdict }) => done(changes.map((change) => {
          const stats = well();
          for (const [path, value] of Object.entries(change)) {
            const names = path.split(".");
            const last = names.pop();
            const isTime = last === "since" || last.endsWith("_at");
            names.reduce((part, name) => part[name], stats)[last] = isTime && value !== null ? at(value) : value;
          }
          const sentences = signs(stats, moment).map(({ words }) => words.map((part) => part.text ?? part).join("").trim());
          return [verdict(stats).words, sentences.slice(1).join(" ") + " " + sentences[0]];
        })), (error) => done([String(error)]));
        """,
        [change for change, _, _ in STATISTICS],
    )
    assert len(results) == len(STATISTICS), results
    for (change, verdict, part), (found, sentences) in zip(STATISTICS, results):
        assert found == verdict, (change, found)
        assert part in sentences, (change, sentences)

    shares = page.browser.execute_async_script(
        "const [counts, done] = arguments; import('/dashboard/words.js').then(({ failedShare }) =>"
        " done(counts.map(([FULFILLED, FAILED]) => failedShare({ orders: { FULFILLED, FAILED } }))))",
        [[fulfilled, failed] for fulfilled, failed, _ in SHARES],
    )
    assert shares == [share for _, _, share in SHARES], shares


def restarts_after_a_crash_are_counted(program, page):
    page.open()
    page.click(".dev button", "^10 orders$")
    page.until("processes run", lambda: [status for _, status, _ in page.rows()].count("PROCESSING") > 2)
    page.click(".dev button", "crash now")
    page.until("it is reported", lambda: "started again in the last hour" in page.text(".signs"))
    page.until("all are settled", lambda: count(page, "Open") == "0" and count(page, "Need an operator") == "0")


def every_request_goes_to_the_origin_and_the_browser_logs_no_error(program, page):
    requests = page.requests()
    assert len(requests) > 100, "the requests were recorded"
    elsewhere = {url for url in requests if not url.startswith((f"{program.url}/", "data:"))}
    assert not elsewhere, elsewhere
    complaints = page.complaints()
    assert not complaints, complaints


def an_invalid_address_is_reported_with_valid_values(program, page):
    for wrong, says in [
        ("status=FOO", "expected CREATED, PROCESSING, FULFILLED or FAILED"),
        ("status=FAILED,FOO", "expected CREATED, PROCESSING, FULFILLED or FAILED"),
        ("attention=FOO", "expected true, false, operator or itself"),
    ]:
        page.open(f"/?{wrong}")
        page.until("it is reported", lambda: says in page.text(".list") and "FOO" in page.text("#list-title"))
        assert not page.rows(), wrong


def the_page_of_the_api_begins_with_creating_an_order(program, page):
    page.browser.get(f"{program.url}/docs")
    links = page.until("it is made", lambda: [link.text for link in page.all("nav a")])
    assert links[:3] == ["POST /order", "GET /order", "GET /order/{id}"], links
    assert not [link for link in links if link.endswith((".js", ".css"))], links


def a_failed_creation_ends_all_that_were_to_follow(program, page):
    page.open()
    page.run(
        "const send = fetch; let posts = 0;"
        "window.fetch = (path, options) =>"
        " options?.method === 'POST' && (posts += 1) === 2 ? Promise.reject(new TypeError()) : send(path, options)"
    )
    before = page.until("they are counted", lambda: count(page, "All") != "–" and int(count(page, "All")))
    page.click(".dev button", "^100 orders$")
    page.until("it is reported", lambda: "then creation failed" in page.text(".dev"))
    created = int(re.search(r"Created (\d+) orders?;", page.text(".dev"))[1])
    assert created < 10, created
    time.sleep(1)
    orders = program.ask("/stats")["orders"]
    assert sum(orders.values()) == before + created, (orders, before, created)


def failed_reads_of_lists_are_repeated(program, page):
    def block(*patterns):
        page.browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": patterns})

    page.until("no event is to come", lambda: count(page, "Open") == "0")
    block("*/order?limit=*")
    page.open("/?list=all")
    page.until("it is reported", lambda: "cannot be read: the program does not answer" in page.text(".list"))
    # By then the stream has begun, which is a reason to read it too.
    time.sleep(2.5)
    block()
    page.until("it is read again", lambda: len(page.rows()) == 50)
    block("*/event?after=*&limit=*")
    page.open()
    page.until("it is reported", lambda: "cannot be read: the program does not answer" in page.text(".list"))
    program.create("meanwhile")
    page.until("it is marked", lambda: len(page.rows()) == 1 and "Not up to date: the program" in page.text(".list"))
    block()
    # The 90 events that are read are 30 orders only if each has three.
    page.until("it is read again", lambda: len(page.rows()) > 20 and "Not up to date" not in page.text(".list"))


def changes_appear_without_a_slot_for_a_stream(program, page):
    page.browser.get("about:blank")
    address = urllib.parse.urlsplit(program.url)
    ask = f"GET /event?after=latest HTTP/1.1\r\nHost: {address.netloc}\r\nAccept: text/event-stream\r\n\r\n".encode()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    streams = []
    refused = 0
    # The stream of the closed page may take a moment to end and free its slot.
    while refused < 3:
        stream = socket.create_connection((address.hostname, address.port))
        stream.sendall(ask)
        status = stream.recv(12)
        assert status in (b"HTTP/1.1 200", b"HTTP/1.1 503"), status
        streams.append(stream)
        if status.endswith(b"503"):
            refused += 1
            time.sleep(0.2)
    # The numbers of events do not follow from the counts of orders after a prune.
    prune = [program.path, "prune", "--settled-before", "1s", "--database-url", program.database]
    subprocess.run(prune, check=True, capture_output=True)
    newest = program.ask("/stats")["newest_event"]
    page.requests()
    page.open()
    page.until("it is reported", lambda: "Too many streams are open" in page.text(".list"))
    program.create("late")
    page.until("the order appears", lambda: status_of(page, "late") in SETTLED)
    polls = [int(found[1]) for url in page.requests() if (found := re.search(r"/event\?after=(\d+)&limit=1000", url))]
    assert polls and all(after >= newest for after in polls), (newest, polls)
    for stream in streams:
        stream.close()


class Withholding(http.server.BaseHTTPRequestHandler):
    """A proxy that forwards only complete responses, as many do; a stream never is complete."""

    protocol_version = "HTTP/1.1"
    program = None

    def do_GET(self):
        if "text/event-stream" in self.headers.get("Accept", ""):
            time.sleep(60)
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        request = urllib.request.Request(self.program + self.path, headers=headers)
        try:
            answer = urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in ("content-length", "connection", "transfer-encoding", "date"):
                    self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def changes_appear_behind_a_proxy_that_withholds_streams(program, page):
    Withholding.program = program.url
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Withholding)
    proxy.daemon_threads = True
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    page.browser.get(f"http://127.0.0.1:{proxy.server_port}/")
    page.until("it is reported", lambda: "No stream arrives" in page.text(".list") and page.rows())
    program.create("withheld")
    page.until("the order appears", lambda: status_of(page, "withheld") in SETTLED)
    page.browser.get("about:blank")
    proxy.shutdown()
    proxy.server_close()


def the_orders_of_an_earlier_database_are_not_shown(program, page):
    program.create("before")
    page.open()
    page.until("the order is there", lambda: status_of(page, "before") in SETTLED)
    program.restart()
    page.until("the page is empty", lambda: "There is no order yet" in page.text(".list"))
    program.create("after")
    page.until("the new one alone is there", lambda: [row[0] for row in page.rows()] == ["after"])
    page.open("/?order=before")
    page.until("it is reported", lambda: "There is no order with this id" in page.text(".order"))


def the_operators_commands_work(program, page):
    # The upstream crashes, and orders with lost processes are held.
    program.restart("--lost-process", "hold")
    for number in range(20):
        program.create(f"h{number}")
    page.open()
    page.until("processes run", lambda: [status for _, status, _ in page.rows()].count("PROCESSING") > 3)
    page.click(".dev button", "crash now")
    page.until("an operator has to decide", lambda: re.search(r"^[1-9]\d* orders? needs? an operator", page.text("#verdict")))
    page.until("they are counted", lambda: count(page, "Need an operator") != "0" and page.all(".counts .needy") and page.all(".reasons.held"))
    page.click(".counts a", "Need an operator")
    page.until("they are listed", lambda: page.address() == "/?attention=operator" and page.text("#list-title") == "Orders that need an operator" and page.rows())
    page.click(".orders a")
    page.until("the reason is shown", lambda: "Why it needs an operator" in page.text(".order"))
    page.check_everywhere("held")
    assert "In a shell where the service runs" in page.text(".order").replace("\n", " ")
    commands = [element.text for element in page.all(".command code")]
    fail = next(command for command in commands if " fail " in command)
    assert "--database-url" in fail, fail
    ran = subprocess.run(["sh", "-c", fail], capture_output=True, text=True, cwd="/")
    assert "is FAILED now" in ran.stdout, ran


def a_silent_program_is_reported_and_outdated_parts_are_marked(program, page):
    page.open()
    program.signal(signal.SIGSTOP)
    page.until("it is reported", lambda: page.text("#verdict") == "The state cannot be read")
    assert "The program does not answer in time, since" in page.text(".state")
    assert "changes do not appear now" in page.text(".list")
    assert page.all(".state.stale") and page.all(".counts.stale") and page.all(".charts.stale")
    page.check_everywhere("silent")
    program.signal(signal.SIGCONT)
    page.until("it is read again", lambda: page.text("#verdict") == "Everything runs" and not page.all(".stale"))


TESTS = [
    an_order_created_on_the_page_is_seen_to_settle_without_a_reload,
    a_count_leads_to_its_orders_and_the_filter_is_in_the_address,
    a_list_is_read_page_by_page_and_each_page_has_an_address,
    an_order_shows_its_journal_and_a_command_that_works,
    a_link_leads_to_the_same_order_in_the_same_list_and_back_leads_back,
    an_order_is_found_by_its_id_whatever_is_in_it,
    it_works_by_keyboard,
    the_sentences_say_what_the_statistics_say,
    a_broken_upstream_is_described_until_it_is_repaired,
    restarts_after_a_crash_are_counted,
    the_page_of_the_api_begins_with_creating_an_order,
    # Before tests in which requests fail on purpose.
    every_request_goes_to_the_origin_and_the_browser_logs_no_error,
    an_invalid_address_is_reported_with_valid_values,
    a_failed_creation_ends_all_that_were_to_follow,
    failed_reads_of_lists_are_repeated,
    changes_appear_without_a_slot_for_a_stream,
    changes_appear_behind_a_proxy_that_withholds_streams,
    a_silent_program_is_reported_and_outdated_parts_are_marked,
    the_orders_of_an_earlier_database_are_not_shown,
    the_operators_commands_work,
]


def main():
    program_path, screenshots = sys.argv[1:]
    failed = 0
    program = Program(program_path)
    try:
        page = Page(program.url, screenshots)
        try:
            for test in TESTS:
                begun = time.monotonic()
                try:
                    test(program, page)
                    result = "ok"
                except Exception:  # noqa: BLE001 -- the other tests still run
                    traceback.print_exc()
                    failed += 1
                    result = "FAILED"
                print(f"{result:6} {time.monotonic() - begun:5.1f} s  {test.__name__}", flush=True)
        finally:
            page.close()
    finally:
        program.signal(signal.SIGCONT)
        program.stop()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
