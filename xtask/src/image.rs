//! Builds the bare-metal image.

use std::path::{Path, PathBuf};

/// Builds the image from the tree at `root` and returns its path.
pub fn build(root: &Path) -> anyhow::Result<PathBuf> {
    anyhow::bail!("{}: the image cannot be built yet", root.display())
}
