//! The house is tidy.

#[test]
fn the_house_is_tidy() {
    let findings = xtask::tidy::check(&xtask::root()).unwrap();
    assert!(findings.is_empty(), "cargo xtask tidy finds:\n{}", findings.join("\n"));
}
