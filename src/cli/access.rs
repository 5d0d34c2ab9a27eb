//! Which files of the configuration the daemon's user could not read.
//!
//! root reads everything, so a check by root would bless files that the daemon
//! can't open. Modes alone don't tell: ACLs and security modules have a say. So a
//! thread takes on the user's identity and asks the kernel by opening the files;
//! only that thread changes, and it ends with the question.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, anyhow};
use rustix::fs::{Gid, Uid};

/// The user that the packaged units run as.
pub(super) const USER: &str = "doorward";

/// A user by its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// The packaged user, if this host has it and this process may take its identity.
pub(super) fn packaged_user() -> Option<Identity> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let group = std::fs::read_to_string("/etc/group").unwrap_or_default();
    identity(USER, &passwd, &group)
}

/// Source: passwd(5), group(5). A static system user stands in these files.
fn identity(user: &str, passwd: &str, group: &str) -> Option<Identity> {
    let mut fields = passwd.lines().map(|line| line.split(':')).find_map(|mut fields| {
        let found = fields.next() == Some(user);
        found.then_some(fields)
    })?;
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let groups = group
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            match fields.as_slice() {
                [_, _, gid, members, ..] if members.split(',').any(|member| member == user) => gid.parse().ok(),
                _ => None,
            }
        })
        .collect();
    Some(Identity { uid, gid, groups })
}

/// What stands in the way of each path that the user can't read, one line each.
///
/// # Errors
/// The identity can't be taken on.
pub(super) fn unreadable(user: &Identity, paths: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let (user, paths) = (user.clone(), paths.to_vec());
    let asked = thread::spawn(move || -> anyhow::Result<Vec<String>> {
        let uid = Uid::from_raw(user.uid);
        let gid = Gid::from_raw(user.gid);
        let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
        rustix::thread::set_thread_groups(&groups)
            .and_then(|()| rustix::thread::set_thread_res_gid(gid, gid, gid))
            .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid))
            .context("can't examine what the daemon's user may read")?;
        Ok(paths.iter().filter_map(|path| obstacle(path)).collect())
    });
    asked.join().map_err(|_| anyhow!("the examination of what the daemon's user may read failed"))?
}

/// Why this thread can't read `path`.
fn obstacle(path: &Path) -> Option<String> {
    // A relative path is entered from a folder that may be closed itself.
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let read = |path: &Path| {
        if path.is_dir() { std::fs::read_dir(path).map(drop) } else { File::open(path).map(drop) }
    };
    let error = read(&whole).err()?;
    // The outermost folder behind which nothing is seen is the one to mend.
    let above: Vec<&Path> = whole.ancestors().collect();
    let closed = above.windows(2).rev().find_map(|pair| match pair {
        [inner, outer] if std::fs::metadata(inner).is_err() => Some(*outer),
        _ => None,
    });
    let path = path.display();
    Some(match closed {
        Some(folder) => format!("{path}: user `{USER}` could not read it: it may not enter {}", folder.display()),
        None => format!("{path}: user `{USER}` could not read it: {}", error.kind()),
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_user_is_found_with_all_its_groups() {
        let passwd = "root:x:0:0::/root:/bin/sh\ndoorward2:x:5:5::/:/\ndoorward:x:996:995::/:/usr/sbin/nologin\n";
        let group = "a:x:7:doorward\nb:x:8:root,doorward\nc:x:9:doorward2\ndoorward:x:995:\nbroken\n";
        assert_eq!(identity("doorward", passwd, group), Some(Identity { uid: 996, gid: 995, groups: vec![7, 8] }));
        assert_eq!(identity("nobody", passwd, group), None);
        assert_eq!(identity("doorward", "doorward:x:many:1", ""), None);
    }

    #[test]
    fn the_kernel_says_what_another_user_may_read() {
        if !rustix::process::geteuid().is_root() {
            return; // only root can take on another identity
        }
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let make = |name: &str, bits| {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();
            mode(&path, bits);
            path
        };
        let closed = folder.path().join("closed");
        std::fs::create_dir(&closed).unwrap();
        let (open, private, by_group) = (make("open", 0o644), make("private", 0o600), make("group", 0o640));
        std::os::unix::fs::chown(&by_group, Some(0), Some(4242)).unwrap();
        let inside = make("closed/inside", 0o644);
        mode(&closed, 0o700);
        mode(folder.path(), 0o755);

        let user = Identity { uid: 4243, gid: 4244, groups: vec![4242] };
        let paths = [open, private.clone(), by_group, inside.clone(), closed.clone()];
        assert_eq!(
            unreadable(&user, &paths).unwrap(),
            [
                format!("{}: user `doorward` could not read it: permission denied", private.display()),
                format!(
                    "{}: user `doorward` could not read it: it may not enter {}",
                    inside.display(),
                    closed.display()
                ),
                format!("{}: user `doorward` could not read it: permission denied", closed.display()),
            ]
        );
        // This thread is still root.
        assert!(File::open(private).is_ok());
    }
}
