//! Compares the HTML pages with the code. The description of the API is tested in `openapi`, the
//! dashboard in a browser in `tests/browser`.

use std::fs;

use crate::environment::{Answer, Client, with_api};

/// Maximum size of a page with all its resources, in bytes: it loads quickly on a slow line.
const PAGE_BYTES_MAX: usize = 150_000;

/// URLs in the vendored files that are not fetched: a name space, and a credit.
const NAMES: [&str; 2] = [
    "http://www.w3.org/2000/svg",
    "https://github.com/leeoniya/uPlot",
];

fn source(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the texts between two delimiters.
fn between<'a>(text: &'a str, opening: &str, closing: &str) -> Vec<&'a str> {
    text.split(opening)
        .skip(1)
        .filter_map(|rest| rest.split_once(closing))
        .map(|(found, _)| found)
        .collect()
}

/// Checks that a page runs and fetches nothing from elsewhere, and that all its references exist.
/// Returns its size with all its resources.
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
    // A script may create the target of a link.
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
async fn a_page_is_small_and_fetches_nothing_from_elsewhere() {
    let (_env, api, client) = with_api();
    for path in ["/", "/problems", "/docs", "/docs/metrics"] {
        check_page(&client, &api.url, path).await;
    }
    let nothing = client.get(format!("{}/dashboard/none.js", api.url)).await;
    assert_eq!(nothing.status, 404);
}

#[test]
fn the_vendored_files_are_unchanged_and_their_licences_are_served() {
    let folder = format!("{}/src/api/pages/vendor", env!("CARGO_MANIFEST_DIR"));
    let readme = source("src/api/pages/vendor/README.md");
    for entry in fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("LICENSE") {
            assert!(readme.contains(&format!("`{name}`")), "{name}");
        } else if name != "README.md" {
            let file = fs::read(format!("{folder}/{name}")).unwrap();
            let sum = ring::digest::digest(&ring::digest::SHA256, &file);
            let sum: String = sum.as_ref().iter().map(|b| format!("{b:02x}")).collect();
            let is_listed = |row: &&str| row.contains(&format!("`{name}`")) && row.contains(&sum);
            assert!(readme.lines().any(|row| is_listed(&row)), "{name}: {sum}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_type_of_a_problem_leads_to_its_section() {
    let (_env, api, client) = with_api();
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
