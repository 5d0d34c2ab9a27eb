//! The package under test, and what tests ask of an installed one.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};

use crate::host::{Host, Suite};

/// Where a test finds the package in its host.
pub(crate) const PACKAGE: &str = "/root/doorward.deb";

/// Runs a story on a bare host.
pub(crate) fn boot(suite: Suite, story: fn(&Host) -> Result<()>) -> Result<()> {
    let host = Host::boot(suite)?;
    match catch_unwind(AssertUnwindSafe(|| story(&host))) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(anyhow!("{error:#}\n\n{}", host.evidence())),
        Err(panic) => {
            eprintln!("{}", host.evidence());
            resume_unwind(panic)
        }
    }
}

/// Runs a story on a host that has the package installed.
pub(crate) fn install(suite: Suite, story: fn(&Host) -> Result<()>) -> Result<()> {
    let host = Host::boot(suite)?;
    let result = catch_unwind(AssertUnwindSafe(|| {
        copy_package(&host)?;
        apt_install(&host, PACKAGE)?;
        story(&host)
    }));
    match result {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(anyhow!("{error:#}\n\n{}", host.evidence())),
        Err(panic) => {
            eprintln!("{}", host.evidence());
            resume_unwind(panic)
        }
    }
}

/// The package's file on the machine.
///
/// # Errors
/// `DOORWARD_DEB` names no file.
pub(crate) fn package() -> Result<PathBuf> {
    let path = std::env::var_os("DOORWARD_DEB")
        .context("DOORWARD_DEB must name the package to test; tests/run sets it")?;
    let path = PathBuf::from(path);
    fs::metadata(&path).with_context(|| format!("no package at {}", path.display()))?;
    Ok(path)
}

/// Puts the package into the host.
pub(crate) fn copy_package(host: &Host) -> Result<()> {
    host.put(PACKAGE, fs::read(package()?)?)
}

/// Installs a package file of the host, offline, as a user does with apt.
pub(crate) fn apt_install(host: &Host, path: &str) -> Result<()> {
    host.run(&format!("apt-get install -y {path}"))?.ok()?;
    Ok(())
}
