//! `docs/api.md` says what the code does.

use crate::error::Code;
use crate::routes::ROUTES;
use alloc::format;
use alloc::string::String;

const DOCS: &str = include_str!("../../../docs/api.md");

#[test]
fn every_endpoint_has_its_section_and_an_example() {
    let mut sections = 0;
    for (method, path, _) in ROUTES {
        let heading = format!("\n### `{method} {path}`\n");
        let (_, section) = DOCS.split_once(&heading).unwrap_or_else(|| panic!("no section {heading}"));
        let section = section.split("\n### ").next().unwrap();
        assert!(section.contains("curl "), "no example in {heading}");
        sections += 1;
    }
    assert_eq!(DOCS.matches("\n### `").count(), sections, "a section of an endpoint that does not exist");
}

#[test]
fn the_table_of_errors_is_the_one_in_the_code() {
    let mut table = String::from("| error | errno | status | meaning |\n| --- | --- | --- | --- |\n");
    for code in Code::ALL {
        let errno = code.errno().map(|errno| format!("-{}", errno.number())).unwrap_or_default();
        table += &format!("| `{code}` | {errno} | {} | {} |\n", code.status(), code.meaning());
    }
    assert!(DOCS.contains(&table), "docs/api.md should contain:\n{table}");
}
