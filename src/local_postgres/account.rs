//! The account of postgres, and its private directory.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Error, at};

/// The account of postgres if the service is root: postgres refuses to run as root.
#[derive(Clone, Copy, Debug)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Account {
    /// Chooses the account for a directory. `None`: the service is not root, so postgres runs as the same user. An
    /// account that owns the directory keeps it: a later install of the Debian package adds the `postgres` account, and
    /// a cluster of `nobody` must stay usable.
    pub(super) fn for_dir(dir: &Path) -> Result<Option<Account>, Error> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let accounts: Vec<Account> = ["postgres", "nobody"]
            .into_iter()
            .filter_map(|name| {
                Some(Account {
                    uid: id("-u", name)?,
                    gid: id("-g", name)?,
                })
            })
            .collect();
        let owner = fs::metadata(dir).ok().map(|meta| meta.uid());
        accounts
            .iter()
            .find(|account| Some(account.uid) == owner)
            .or(accounts.first())
            .copied()
            .map(Some)
            .ok_or_else(|| {
                Error::Failed(
                    "postgres cannot run as root, and there is neither a postgres nor a nobody account for it".into(),
                )
            })
    }
}

/// Looks up a user or group id. `None`: the name is unknown.
fn id(which: &str, name: &str) -> Option<u32> {
    let out = Command::new("id")
        .args([which, name])
        .stderr(Stdio::null())
        .output()
        .ok()?;
    String::from_utf8_lossy(&out.stdout).trim().parse().ok()
}

/// Makes `dir` if it is missing, for `account` or the current user only, and checks owner and mode.
pub(super) fn make_private_dir(dir: &Path, account: Option<Account>) -> Result<(), Error> {
    if let Some(parent) = dir.parent().filter(|parent| !parent.exists()) {
        fs::create_dir_all(parent).map_err(at(parent))?;
        if account.is_some() {
            // Root's umask may be 077, and the account must be able to enter.
            fs::set_permissions(parent, Permissions::from_mode(0o755)).map_err(at(parent))?;
        }
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(at(dir)(error)),
        _ => {}
    }
    // Do not follow a symbolic link: `lchown` would give its target away.
    let meta = fs::symlink_metadata(dir).map_err(at(dir))?;
    let private = meta.is_dir() && meta.permissions().mode() & 0o077 == 0;
    let owner = account.map_or_else(|| rustix::process::geteuid().as_raw(), |a| a.uid);
    match account {
        // Just made, by us or by another root process that is about to do the same.
        Some(account) if private && meta.uid() == 0 && is_empty(dir)? => {
            std::os::unix::fs::lchown(dir, Some(account.uid), Some(account.gid))
                .map_err(at(dir))?;
        }
        _ if private && meta.uid() == owner => {}
        // The directory is another user's, or others can enter it. The cluster has no passwords.
        _ => {
            return Err(Error::Failed(format!(
                "{} must be a directory owned by uid {owner} with mode 700",
                dir.display()
            )));
        }
    }
    account.map_or(Ok(()), |account| check_reached(dir, account))
}

fn is_empty(dir: &Path) -> Result<bool, Error> {
    Ok(fs::read_dir(dir).map_err(at(dir))?.next().is_none())
}

fn check_reached(dir: &Path, account: Account) -> Result<(), Error> {
    let reached = Command::new("sh")
        .args(["-c", "cd -- \"$0\""])
        .arg(dir)
        .current_dir("/")
        .stderr(Stdio::null())
        .uid(account.uid)
        .gid(account.gid)
        .status()?;
    if reached.success() {
        return Ok(());
    }
    Err(Error::Failed(format!(
        "{} cannot be reached by uid {}, which postgres runs as because we are root; choose a DATA_DIR outside root's home",
        dir.display(),
        account.uid
    )))
}

/// Returns the directory of the socket: the cluster's, or a private one with a short name if the path is too long for a
/// socket address (the lowest limit is 103 bytes, on macOS). The wrapper deletes it.
pub(super) fn socket_dir(dir: &Path, account: Option<Account>) -> Result<PathBuf, Error> {
    if dir.as_os_str().len() + "/.s.PGSQL.5432".len() <= 103 {
        return Ok(dir.to_path_buf());
    }
    let meta = fs::metadata(dir).map_err(at(dir))?;
    let short = PathBuf::from(format!("/tmp/pg-{:x}-{:x}", meta.dev(), meta.ino()));
    make_private_dir(&short, account)?;
    Ok(short)
}
