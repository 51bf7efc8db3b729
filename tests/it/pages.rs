//! The pages for people, held to the code: what a page tells of is there, and what is there is
//! told. The description of the API is in `openapi`; what the dashboard does in a browser, in
//! `tests/browser`.

use std::fs;

use crate::world::{Answer, Client, World};

/// The largest a page may be with all that it uses, in bytes: it opens at once on a poor line.
const PAGE_BYTES_MAX: usize = 150_000;

/// What looks like an address in the vendored files and is none: a name space, and a credit.
const NAMES: [&str; 2] = [
    "http://www.w3.org/2000/svg",
    "https://github.com/leeoniya/uPlot",
];

fn source(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The texts between two others.
fn between<'a>(text: &'a str, opening: &str, closing: &str) -> Vec<&'a str> {
    text.split(opening)
        .skip(1)
        .filter_map(|rest| rest.split_once(closing))
        .map(|(found, _)| found)
        .collect()
}

/// Checks that a page can neither do nor fetch anything that does not come from this program, and
/// that all it refers to is there. Returns how much it weighs with all that it uses.
async fn check_page(client: &Client, api: &str, path: &str) -> usize {
    let page = client.get(format!("{api}{path}")).await;
    assert_eq!(page.status, 200, "{path}");
    check_headers(&page);
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let html = &page.body;
    for forbidden in [
        "<style",
        "style=",
        "onclick",
        "javascript:",
        "@import",
        "url(",
    ] {
        assert!(!html.contains(forbidden), "{path} has {forbidden}");
    }
    assert_eq!(
        html.matches("<script").count(),
        html.matches("<script src=\"/").count(),
        "{path}: scripts are files"
    );
    let mut weight = html.len();
    // A script may make what a link leads to.
    let mut whole = html.clone();
    let mut anchors = Vec::new();
    let mut references = between(html, "href=\"", "\"");
    references.extend(between(html, "src=\"", "\""));
    for reference in references {
        if let Some(anchor) = reference.strip_prefix('#') {
            anchors.push(format!("id=\"{anchor}\""));
        } else if reference != "data:," {
            assert!(reference.starts_with('/'), "{path}: {reference}");
            let found = client.get(format!("{api}{reference}")).await;
            assert_eq!(found.status, 200, "{path}: {reference}");
            if [".css", ".js", ".json"]
                .iter()
                .any(|end| reference.ends_with(end))
            {
                check_headers(&found);
                let mut code = found.body.clone();
                for name in NAMES {
                    code = code.replace(name, "");
                }
                assert!(!code.contains("://"), "{reference} leads elsewhere");
                for import in between(&code, "from \"./", "\"") {
                    let preloaded = format!("href=\"/dashboard/{import}\"");
                    assert!(html.contains(&preloaded), "{reference}: {import}");
                }
                weight += found.body.len();
                whole.push_str(&found.body);
            }
        }
    }
    for anchor in anchors {
        assert!(whole.contains(&anchor), "{path}: {anchor}");
    }
    assert!(weight < PAGE_BYTES_MAX, "{path}: {weight} bytes");
    weight
}

fn check_headers(page: &Answer) {
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    for forbidden in ["unsafe", "*", "http:", "https:"] {
        assert!(!policy.contains(forbidden), "{policy}");
    }
    assert_eq!(page.header("x-content-type-options"), "nosniff");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_is_small_and_leads_nowhere_else() {
    let world = World::new();
    let api = world.api(&[]);
    let client = Client::new();
    for path in ["/", "/problems", "/docs", "/docs/metrics"] {
        check_page(&client, &api.url, path).await;
    }
    let nothing = client.get(format!("{}/dashboard/none.js", api.url)).await;
    assert_eq!(nothing.status, 404);
}

#[test]
fn the_files_from_elsewhere_are_as_they_were_published_and_their_licences_are_told() {
    let folder = format!("{}/src/api/pages/vendor", env!("CARGO_MANIFEST_DIR"));
    let told = source("src/api/pages/vendor/README.md");
    for entry in fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("LICENSE") {
            assert!(told.contains(&format!("`{name}`")), "{name}");
        } else if name != "README.md" {
            let file = fs::read(format!("{folder}/{name}")).unwrap();
            let sum = ring::digest::digest(&ring::digest::SHA256, &file);
            let sum: String = sum.as_ref().iter().map(|b| format!("{b:02x}")).collect();
            let is_told = |row: &&str| row.contains(&format!("`{name}`")) && row.contains(&sum);
            assert!(told.lines().any(|row| is_told(&row)), "{name}: {sum}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_problem_leads_to_the_section_that_tells_of_it() {
    let world = World::new();
    let api = world.api(&[]);
    let client = Client::new();
    client.create(&api.url, "a1").await;
    let page = client.get(format!("{}/problems", api.url)).await.body;
    for (method, path, body) in [
        ("GET", "/none", ""),
        ("GET", "/order/none", ""),
        ("GET", "/order/%", ""),
        ("GET", "/order?x=1", ""),
        ("PUT", "/order", ""),
        ("POST", "/order", "{}"),
        ("POST", "/order", r#"{"id":"a1"}"#),
        ("POST", "/problems", ""),
    ] {
        let request = client.request(method, format!("{}{path}", api.url));
        let problem = client.send(request.body(body)).await.json();
        let kind = problem["type"].as_str().unwrap();
        let anchor = kind.strip_prefix("/problems#").unwrap();
        let sections = between(&page, "<section ", "</section>");
        let section = sections
            .iter()
            .find(|section| section.starts_with(&format!("id=\"{anchor}\"")))
            .unwrap_or_else(|| panic!("{kind}"));
        let title = problem["title"].as_str().unwrap();
        assert!(section.contains(&format!("<h2>{title}</h2>")), "{problem}");
        let status = format!("<dd>{},", problem["status"]);
        assert!(section.contains(&status), "{problem}");
    }
}
