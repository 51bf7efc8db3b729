//! Checks the systemd units with systemd, and against the programs.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::environment::TestEnvironment;

const UNITS: [(&str, &str); 2] = [
    (
        "order-service-api.service",
        env!("CARGO_BIN_EXE_order-service"),
    ),
    (
        "order-reconciler.service",
        env!("CARGO_BIN_EXE_order-reconciler"),
    ),
];

fn unit(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name);
    fs::read_to_string(path).unwrap()
}

#[test]
#[ignore = "needs systemd-analyze; scripts/test all"]
fn systemd_accepts_the_units_and_finds_them_hardened() {
    let env = TestEnvironment::new();
    for (name, program) in UNITS {
        // The path of the built program replaces that of an installed one.
        let installed = format!(
            "/usr/local/bin/{}",
            Path::new(program).file_name().unwrap().display()
        );
        let unit = unit(name);
        assert!(unit.contains(&format!("ExecStart={installed}")), "{name}");
        let path = env.path(name);
        fs::write(&path, unit.replace(&installed, program)).unwrap();
        let verified = Command::new("systemd-analyze")
            .arg("verify")
            .arg(&path)
            .output()
            .unwrap();
        let complaints = String::from_utf8_lossy(&verified.stderr);
        assert!(
            verified.status.success() && complaints.is_empty(),
            "{name}: {complaints}"
        );
        // systemd's exposure level goes from 0 to 10, here in tenths.
        let hardened = Command::new("systemd-analyze")
            .args(["security", "--offline=yes", "--threshold=15"])
            .arg(&path)
            .output()
            .unwrap();
        let report = String::from_utf8_lossy(&hardened.stdout);
        assert!(hardened.status.success(), "{name}: {report}");
    }
}

#[test]
fn the_units_wait_for_a_drain_and_restart_unless_settings_are_wrong() {
    for (name, _) in UNITS {
        let unit = unit(name);
        for line in [
            "User=order-service",
            "Environment=DATABASE_URL=sqlite:/var/lib/order-service/orders.db",
            "TimeoutStopSec=30",
            "StartLimitIntervalSec=0",
            "Restart=always",
            "RestartPreventExitStatus=2",
        ] {
            assert!(unit.lines().any(|found| found == line), "{name}: {line}");
        }
    }
}
